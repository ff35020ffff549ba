"""Pre-flight: what would make a distillation fail, or its diagnosis lie, before either is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mopd_diag.config import Cast, MOPDStage, SeqKDStage, load_cast, read_toml
from mopd_diag.errors import BadInput, CheckpointError, MopdDiagError
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.prompts import Prompt, read_prompts
from mopd_diag.seeds import seed_of
from mopd_diag.study.joined import study_of
from mopd_diag.study.resolve import Study, find_plan
from mopd_diag.study.settle import IN_WORDS, settled
from mopd_diag.study.studies import find_study
from mopd_diag.types import Estimate, Finding, Severity

if TYPE_CHECKING:
    from mopd_diag.engines.served_http import Address
    from mopd_diag.study.cast import CastModels

FOREIGN_KL = 0.1
"""Nats a token: between the initial KL of same-origin teachers (0.04) and of a foreign one that collapsed (0.19), 2606.30406."""
OUTLIER = 3.0
"""A teacher is far when it is also this many times further than the median teacher: strong RL moves all of them."""
STARVED, DOMINANT = 0.25, 4.0
"""Token share over prompt share: instruction following at 0.9 % of the tokens and 20 % of the prompts starved (2608.19098)."""
SAMPLE_ITEMS = 200


def check_target(
    target: str, prompts: Path | None, seed: int, *, world: str | None = None, model: str | None = None, engine: str = "torch",
    device: str = "auto",
) -> list[Finding]:  # fmt: skip
    """Findings of a plan, with the command line's world and model, or of a cast file (recognised by its `[student]`).

    `engine` "vllm" measures a cast's sampler too; a cast's models are put on `device`. Raises BadInput when it is neither.
    """
    path = Path(target)
    if path.suffix == ".toml" and path.is_file() and "student" in read_toml(path):
        if world is not None or model is not None:
            raise BadInput("--world and --model belong to a plan; a cast names its models, and --prompts its questions")
        return check_cast(
            load_cast(path), read_prompts(prompts, responses=False) if prompts else None, seed, engine=engine, device=device
        )  # fmt: skip
    if engine != "torch":
        raise BadInput(f"--engine {engine} belongs to a cast; got {target}, which is none: give a cast file")
    if device != "auto":
        raise BadInput(f"--device {device} belongs to a cast; got {target}, a plan: name it there as [compute] device")
    if prompts is not None:
        raise BadInput("--prompts belongs to a cast; a plan's world makes its own prompts")
    if (study := find_study(target, world=world, model=model)) is not None:
        return check_plan(settled(study_of(study, study.study.seeds[0]), of_recipes=True))
    return check_plan(settled(find_plan(target, world=world, model=model)))


def check_plan(study: Study) -> list[Finding]:
    """What can be known of a plan before it runs: that it resolves, what it costs, how its tokens are shared out."""
    from mopd_diag.study.preflight import check_fit, stage_bytes

    check_fit(study, Path())
    about = {}
    if study.first is not None:
        form = study.plan.world.template if study.plan.world.name in IN_WORDS else ""
        about = {
            "checkpoint": str(study.first.folder), "hash": study.model, "template": form, "prompt_tokens": study.prompt_tokens,
            "memory_bytes": {s.name: stage_bytes(s, study) for s in study.stages},
        }  # fmt: skip
    rollouts = sum(getattr(s, "steps", 0) * getattr(s, "prompts", 0) * getattr(s, "group", 1) for s in study.stages)
    found = [
        Finding(
            "preflight-plan", "preflight", study.plan.name, "ready", "info", None,
            {"stages": [s.name for s in study.stages], "rollouts": rollouts,
             "note": "; ".join(["every stage resolves; the machine has room for it", *study.notes]), **about},
        )
    ]  # fmt: skip
    for stage in study.stages:
        if isinstance(stage, MOPDStage | SeqKDStage):
            found += _token_shares(study, stage)
    return found


def _token_shares(study: Study, stage: MOPDStage | SeqKDStage) -> list[Finding]:
    """Share of the answer tokens of each domain when prompts are shared out evenly and answered right."""
    domains = study.domains(stage)
    lengths = []
    for k, domain in enumerate(domains):
        items = study.world.draw_batch([domain], SAMPLE_ITEMS, (study.plan.seed, "check"))
        if any(not i.target for i in items):
            why = f"domain '{domain}' has no right answer to count the tokens of"
            return [
                Finding(
                    f"preflight-tokens-{stage.name}", "preflight", stage.name, "undetermined", "notice",
                    Estimate.undefined(why), {"note": why},
                )
            ]  # fmt: skip
        length_I = np.array(study.tokens([i.target for i in items])) + 1.0  # and the end-of-sequence
        lengths.append(Bootstrap.of(length_I, seed=[study.plan.seed, k], bounds=None))
    drawn, prompt_share, found = Bootstrap.join(lengths), 1 / len(domains), []
    for k, domain in enumerate(domains):
        share = drawn.estimate(lambda m, k=k: m[..., k] / m.sum(-1), note="of right answers' tokens")
        ratio = share.value / prompt_share
        verdict, severity = _balance(ratio)
        evidence = {
            "prompt_share": prompt_share,
            "note": f"its share of the tokens is {ratio:.2f} of its share of the prompts",
        }
        name = f"preflight-tokens-{stage.name}-{domain}"
        found.append(Finding(name, "preflight", f"{stage.name}/{domain}", verdict, severity, share, evidence))
    return found


def _balance(ratio: float) -> tuple[str, Severity]:
    if ratio < STARVED:
        return "starved", "warning"
    if ratio > DOMINANT:
        return "dominant", "warning"
    return "balanced", "info"


# -- casts --------------------------------------------------------------------------------------------------------------------


def check_cast(
    cast: Cast, prompts: Sequence[Prompt] | None, seed: int, *, engine: str = "torch", device: str = "auto"
) -> list[Finding]:
    """Members load and share a tokenizer; with prompts: KL(base‖teacher) on the base's answers, token and gradient shares."""
    from mopd_diag.models.device import pick
    from mopd_diag.study.cast import load_members

    if engine == "vllm" and prompts is None:
        raise BadInput("--engine vllm needs prompts to sample answers to; add --prompts FILE.jsonl")
    try:
        members = load_members(cast, device=pick(device))
    except CheckpointError as error:
        return [Finding("preflight-members", "preflight", "cast", "blocked", "blocking", None, {"note": str(error)})]
    note = f"{len(members.loaded)} members load and share one tokenizer"
    found = [
        Finding(
            "preflight-members",
            "preflight",
            "cast",
            "ready",
            "info",
            None,
            {"members": list(members.loaded), "note": note},
        ),
        *(_reached(address, members) for address in members.served.values()),
    ]
    if prompts is None:
        why = "no prompts given: initial KL, token and gradient shares were not measured; add --prompts FILE.jsonl"
        return [
            *found,
            Finding(
                "preflight-kl", "preflight", "cast", "undetermined", "notice", Estimate.undefined(why), {"note": why}
            ),
        ]
    found += _measured(members, prompts, seed)
    if engine == "vllm":
        from mopd_diag.study.vllm_cast import sampler_mismatch

        found.append(sampler_mismatch(members.loaded["student"], _per_domain(prompts), seed))
    return found


def _reached(address: Address, members: CastModels) -> Finding:
    """Whether a served member answers as it must, asked for one token; its divergence is left to `attribute`."""
    from mopd_diag.study.served import probe

    name = f"preflight-served-{address.name}"
    try:
        note = probe(address, members.tokenizer)
    except MopdDiagError as error:
        return Finding(name, "preflight", address.name, "blocked", "blocking", None, {"note": str(error)})
    return Finding(name, "preflight", address.name, "ready", "info", None, {"note": note})


def _measured(members: CastModels, prompts: Sequence[Prompt], seed: int) -> list[Finding]:
    import torch

    from mopd_diag.engines.rollouts import pack
    from mopd_diag.engines.sampling import sample
    from mopd_diag.engines.scoring import score
    from mopd_diag.models.decoder import Decoder

    base, tokenizer = members.models["base"], members.tokenizer
    if not isinstance(base, Decoder):
        why = f"{type(base).__name__}: this architecture cannot be sampled here yet"
        return [
            Finding(
                "preflight-kl", "preflight", "cast", "undetermined", "notice", Estimate.undefined(why), {"note": why}
            )
        ]
    chosen = _per_domain(prompts)
    ids = tokenizer.encode_all([p.prompt for p in chosen])
    generator = torch.Generator().manual_seed(seed_of(seed, "check"))
    rollouts = sample(
        base, ids, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, max_new_tokens=128, generator=generator
    )
    rollouts = pack(ids, rollouts.responses(), tokenizer.pad_id)
    models: dict[str, Any] = members.models
    # What a server gives bounds a divergence from below: it could call a teacher far, never near.
    teachers = [t for t in members.teachers if t in models]
    if not teachers:
        return []
    evidence = score(rollouts, models, "base", teachers).evidence
    domains = [p.domain for p in chosen]
    answers = np.arange(len(chosen))
    tokens = np.bincount(evidence.answer_T, minlength=len(chosen))
    distance = {}
    for teacher in teachers:
        taught = [d for d, t in members.route.items() if t == teacher] or sorted(set(domains))
        mine = [i for i in answers if domains[i] in taught]
        kl = np.bincount(evidence.answer_T, evidence.kl_TM[:, evidence.members.index(teacher)], minlength=len(chosen))
        distance[teacher] = kl[mine] / np.maximum(tokens[mine], 1)
    usual = float(np.median([x.mean() for x in distance.values() if len(x)])) if len(distance) > 1 else 0.0
    found = [_initial_kl(teacher, kl_I, usual) for teacher, kl_I in distance.items()]
    found += _shares(members, rollouts, domains)
    return found


def _per_domain(prompts: Sequence[Prompt]) -> list[Prompt]:
    kept: dict[str, list[Prompt]] = {}
    for p in prompts:
        kept.setdefault(p.domain, []).append(p)
    return [p for group in kept.values() for p in group[:SAMPLE_ITEMS]]


def _initial_kl(teacher: str, kl_I: np.ndarray, usual: float) -> Finding:
    unit = "nats a token"
    if len(kl_I) < 2:
        estimate = Estimate.undefined("fewer than two prompts of its domains", unit=unit, n_items=len(kl_I))
    else:
        estimate = Bootstrap.of(kl_I, seed=0, bounds=None).column(0, unit=unit)
    limit = max(FOREIGN_KL, OUTLIER * usual)
    far, near = estimate.low > limit, estimate.high < limit  # both false when undefined
    note = f"KL(base‖{teacher}) on the base's own answers, against a limit of {limit:.2f}"
    if far:
        note += "; a teacher of another origin can make training collapse"
    verdict = "far" if far else "near" if near else "undetermined"
    return Finding(
        f"preflight-kl-{teacher}", "preflight", teacher, verdict, "warning" if far else "info", estimate, {"note": note}
    )


def _shares(members: CastModels, rollouts: Any, domains: Sequence[str]) -> list[Finding]:
    """Prompt, token and gradient share of each routed domain: the norm of its summed full-vocabulary gradient at the base."""
    import torch

    from mopd_diag.engines.head import head_loss
    from mopd_diag.models.decoder import Decoder
    from mopd_diag.training.algorithm import make_parts
    from mopd_diag.training.distill import reverse_kl

    base = members.models["base"]
    routed = [d for d in dict.fromkeys(domains) if members.route.get(d) in members.models]
    if not routed or not isinstance(base, Decoder):
        return []
    norms, tokens, count = {}, {}, {}
    for domain in routed:
        rows = torch.tensor([i for i, d in enumerate(domains) if d == domain])
        mine = rollouts.take(rows)
        teacher = members.models[members.route[domain]]
        base.zero_grad(set_to_none=True)
        ones_NL = torch.ones(mine.own_NL.shape)
        for part in make_parts(mine.ids_NL, mine.length_N, mine.own_NL, ones_NL, device=base.device):
            with torch.no_grad():
                taught_MD = teacher.hidden_at(part.ids_NL, part.at_M)

            def loss(
                logits: torch.Tensor,
                where: slice,
                taught: torch.Tensor = taught_MD,
                head: torch.Tensor = teacher.head_VD,
            ):
                target = torch.log_softmax(taught[where] @ head.t(), -1)
                return reverse_kl(torch.log_softmax(logits, -1), target), {}

            hidden_MD = base.hidden_at(part.ids_NL, part.at_M)
            head_loss(hidden_MD, base.head_VD, loss)[0].backward()
        norms[domain] = float(torch.stack([p.grad.norm() for p in base.parameters() if p.grad is not None]).norm())
        tokens[domain], count[domain] = int(mine.own_NL.sum()), len(rows)
    base.zero_grad(set_to_none=True)
    found = []
    for domain in routed:
        prompt, token = count[domain] / sum(count.values()), tokens[domain] / sum(tokens.values())
        gradient = norms[domain] / sum(norms.values()) if sum(norms.values()) else float("nan")
        verdict, severity = _balance(token / prompt)
        if verdict == "balanced" and gradient == gradient:
            verdict, severity = _balance(gradient / prompt)
        evidence = {
            "prompt_share": prompt,
            "token_share": token,
            "gradient_share": gradient if gradient == gradient else None,
        }
        evidence["note"] = (
            f"prompts {prompt:.0%}, tokens {token:.0%}, gradient norm {gradient:.0%} of the sum over domains"
        )
        found.append(Finding(f"preflight-share-{domain}", "preflight", domain, verdict, severity, None, evidence))
    return found
