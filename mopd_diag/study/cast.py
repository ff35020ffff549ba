"""Attribution for any checkpoints: load a cast, take or sample the student's answers, score them, name the teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mopd_diag.config import Cast
from mopd_diag.diagnostics.attribution import Attribution, attribute
from mopd_diag.engines.scoring import Scored, score
from mopd_diag.engines.served import TOP_K
from mopd_diag.engines.served_http import Address
from mopd_diag.engines.topk_evidence import score_given, score_topk
from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.estimators.span_likelihood import CEILING
from mopd_diag.models.device import pick
from mopd_diag.models.foreign import ForeignModel
from mopd_diag.models.loading import Loaded, Model, adapters_on_one_base, load
from mopd_diag.models.lora import Worn
from mopd_diag.models.outline import Outline, same_weights
from mopd_diag.models.tokenizer import difference
from mopd_diag.prompts import Prompt
from mopd_diag.runs.directory import write_json, write_table
from mopd_diag.study.answers import Answers, Sampling, Told, answers_of, by_torch, context_of
from mopd_diag.study.foreign_cast import attribute_aligned
from mopd_diag.study.served import Servers, addresses, open_servers, seen
from mopd_diag.study.vllm_members import read_members, turns

NO_NULL = (
    "confidence is not calibrated: without decoys nothing tells how near a model that never taught would come; add same-base models that "
    "never taught as [controls.NAME]"
)

NOT_WHOLE = "confidence is not calibrated: probabilities were learned on whole vocabularies, and here a few tokens of each were compared"


@dataclass(frozen=True, slots=True)
class CastModels:
    """The members of a cast: loaded, or behind a server."""

    loaded: dict[str, Loaded]
    teachers: tuple[str, ...]
    route: dict[str, str]
    served: dict[str, Address] = field(default_factory=dict)

    @property
    def tokenizer(self):  # noqa: ANN201
        return self.loaded["student"].tokenizer

    @property
    def models(self) -> dict[str, Model]:
        return {name: each.model for name, each in self.loaded.items()}


def open_members(cast: Cast, told: Told = lambda _: None, device: torch.device | str = "cpu") -> CastModels:
    """Load every member that has a path onto a device, one file once; no server is asked yet. Adapters of teachers, rivals and
    controls share their base in memory.

    Raises BadInput when student or base are served or a key is missing, CheckpointError when a checkpoint cannot be loaded.
    """
    loaded: dict[str, Loaded] = {}
    by_path: dict[Path, Loaded] = {}
    served, base = addresses(cast), cast.base.path
    worn = adapters_on_one_base(
        {n: m.path for n, m in cast.members().items() if m.path is not None and n not in ("base", "student")},
        base,
        told,
        device,
    )
    for name, member in cast.members().items():
        if member.path is None:
            continue
        if name in worn:
            loaded[name] = worn[name]
            continue
        path = member.path.resolve()
        if path not in by_path:
            told(f"loading {name}")
            by_path[path] = load(member.path, base, device)
        loaded[name] = by_path[path]
    teachers = tuple(f"teacher-{n}" for n in cast.teachers)
    return CastModels(loaded, teachers, _route(cast), served)


def _route(cast: Cast) -> dict[str, str]:
    return {d: f"teacher-{n}" for n, m in cast.teachers.items() for d in m.domains}


def load_members(cast: Cast, told: Told = lambda _: None, device: torch.device | str = "cpu") -> CastModels:
    """As `open_members`; raises CheckpointError too when a member's tokenizer or vocabulary differs from the student's."""
    members = open_members(cast, told, device)
    for name, how in tokenizer_differences(members).items():
        where = f"{members.loaded[name].path}, {members.loaded['student'].path}"
        raise CheckpointError(
            f"{name} and student have different tokenizers: {how} ({where}); token-level comparison needs one tokenizer for the whole cast"
        )
    _check_sizes(members)
    return members


def tokenizer_differences(members: CastModels) -> dict[str, str]:
    """Members whose tokenizer is not the student's, and what differs."""
    found = {
        name: difference(members.tokenizer, each.tokenizer, ("student", name)) for name, each in members.loaded.items()
    }  # fmt: skip
    return {name: how for name, how in found.items() if how}


def attribute_cast(
    cast: Cast, prompts: Sequence[Prompt], *, max_new_tokens: int = 256, temperature: float = 1.0, seed: int = 0,
    top_k: int | None = None, engine: str = "torch", options: Mapping[str, Any] | None = None, device: str = "auto",
    told: Told = lambda _: None, warn: Told = lambda _: None,
) -> Attribution:  # fmt: skip
    """Attribute the student's answers, sampled here where prompts have no response, to base and teachers.

    Members that share one tokenizer are compared over the whole vocabulary, or with `top_k` over the student's k likeliest tokens and
    a tail bucket; with served members, over the tokens that all servers gave (each its own `top_k`, by default 20) and a tail. Members
    with other tokenizers are compared by the likelihood of the same bytes: a weaker verdict, and labelled so. With the `engine` "vllm"
    no member is loaded by torch: all are compared over the `top_k` (by default 20) likeliest tokens of each; `options` go to vLLM.
    `told` hears what is going on, `warn` what was left out or is to be kept in mind; the latter is in `Attribution.notes` too.

    Raises BadInput for a prompt or an answer that cannot be used, CheckpointError for members that cannot be compared.
    """
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        warn(note)

    how = Sampling(max_new_tokens, temperature, seed)
    # Rivals may have been taught by the same teachers, so they are no null; controls never were.
    asked = cast.model_copy(update={"rivals": {}})
    if engine == "vllm":
        found = _by_vllm(asked, prompts, how, top_k, options or {}, told, say)
    else:
        found = _by_torch(asked, prompts, how, top_k, pick(device), told, say)
    why = NO_NULL if found.full_vocabulary is not False or not cast.controls else NOT_WHOLE
    return replace(found, notes=(*notes, *([why] if found.calibration == "uncalibrated" else [])))


def _by_torch(
    cast: Cast, prompts: Sequence[Prompt], how: Sampling, top_k: int | None, device: torch.device, told: Told, say: Told
) -> Attribution:  # fmt: skip
    """Attribution by members that are loaded here or served."""
    members = open_members(cast, told, device)
    for twins in _twins(members.teachers, lambda one, other: _alike(members, one, other)):
        say(twins)
    different = tokenizer_differences(members)
    if not different:
        _check_sizes(members)
    elif members.served:
        raise BadInput(
            f"{next(iter(members.served))} is served, which needs one tokenizer for the whole cast, but {_said(different)}"
        )
    elif top_k is not None:
        raise BadInput(
            f"top-k evidence needs one tokenizer for the whole cast, but {_said(different)}; leave top-k out"
        )
    scored_by = [members.loaded["student"].model] if different else list(members.models.values())
    bounds = [c for c in map(context_of, scored_by) if c is not None]
    with open_servers(members.served, say) as servers:
        context = min([*bounds, *servers.contexts], default=None)
        student = members.loaded["student"]
        answers = answers_of(student, prompts, how, by_torch(student, how), context, told, say)
        if different:
            say(
                f"{_said(different)}: spans are aligned on bytes and compared by likelihood, a weaker verdict whose confidence "
                f"is never above {CEILING}"
            )
            return attribute_aligned(members.loaded, members.teachers, answers.prompts, members.route, told, say)
        return _by_tokens(members, servers, answers, top_k, told, say)


def _by_tokens(
    members: CastModels, servers: Servers, answers: Answers, top_k: int | None, told: Told, say: Told
) -> Attribution:  # fmt: skip
    """Attribution of answers by members of one tokenizer, token by token."""
    rollouts = answers.rollouts(members.tokenizer.pad_id)
    models: dict[str, Any] = members.models
    given = servers.top_tokens(rollouts, top_k, members.tokenizer, told)
    told(f"scoring {len(answers.prompts)} answers")
    if given:
        say(seen(given, f"{' and '.join(given)} served", "the servers"))
        k = min(g.ids_TK.shape[1] - 1 for g in given.values())
        scored = score_topk(rollouts, models, "student", members.teachers, k, served=given)
    elif top_k is None:
        scored = score(rollouts, models, "student", members.teachers)
    else:
        scored = score_topk(rollouts, models, "student", members.teachers, top_k)
    return _named(scored, answers, members.loaded, members.route, say)


def _by_vllm(
    cast: Cast, prompts: Sequence[Prompt], how: Sampling, top_k: int | None, options: Mapping[str, Any], told: Told, say: Told,
) -> Attribution:  # fmt: skip
    """Attribution by members that vLLM loads one after the other, and served ones."""
    at, members = addresses(cast), read_members(cast)
    teachers = tuple(f"teacher-{n}" for n in cast.teachers)
    for note in _twins(teachers, lambda one, other: _one_checkpoint(members, at, one, other)):
        say(note)
    tokenizer, most = members["student"].tokenizer, members["student"].vocab_size - 1
    if top_k is not None and top_k > most:
        raise BadInput(f"top-k {top_k} is not between 1 and {most}, one less than the vocabulary; choose a smaller k")
    k = min(TOP_K, most) if top_k is None else top_k
    # vLLM wants room for one token more than it reads, and a model reads all but the last.
    bounds = [m.context - 2 for m in members.values() if m.context is not None]
    with open_servers(at, say) as servers, turns(members, k, told, options) as taken:
        context = min([*bounds, *servers.contexts], default=None)
        answers = answers_of(members["student"], prompts, how, taken.draw(how), context, told, say)
        rollouts = answers.rollouts(tokenizer.pad_id)
        given = {**taken.top_tokens(rollouts), **servers.top_tokens(rollouts, top_k, tokenizer, told)}
        scored = score_given(rollouts, given, "student", teachers)
        kept = {n: g for n, g in given.items() if n not in scored.left_out}
        who = f"{len(members)} members scored by vLLM {taken.version} in {taken.dtype}"
        say(seen(kept, who + (f", {' and '.join(at)} served" if at else ""), "each of them"))
    return _named(scored, answers, members, _route(cast), say)


def _named(
    scored: Scored, answers: Answers, local: Mapping[str, Loaded | Outline], route: Mapping[str, str], say: Told
) -> Attribution:
    """The attribution of scored answers; members that were left out are said."""
    tokenizer = local["student"].tokenizer
    for name in scored.left_out:
        say(f"{name} gives NaN or infinite logits and is left out; repair {local[name].path}")
    route = {d: t for d, t in route.items() if t not in scored.left_out}
    names = {t: tokenizer.token(t) for t in set(scored.token_T.tolist())}
    tokens = pd.DataFrame({"token_id": scored.token_T, "token": [names[t] for t in scored.token_T.tolist()]})
    return attribute(scored.evidence, answers.frame(), tokens, routed=route or None)


def write_attribution(attribution: Attribution, out: Path) -> None:
    """Traces, answers and the summary into a directory."""
    write_table(out / "traces" / "student.parquet", attribution.tokens)
    write_table(out / "attribution" / "student.parquet", attribution.answers)
    write_json(out / "attribution.json", attribution.to_dict())


def _said(different: dict[str, str]) -> str:
    names = " and ".join(different)
    how = next(iter(different.values()))
    return f"{names} and student have different tokenizers ({how})"


def _check_sizes(members: CastModels) -> None:
    size = members.models["student"].config.vocab_size
    for name, model in members.models.items():
        if model.config.vocab_size != size:
            raise CheckpointError(f"{name} has {model.config.vocab_size} logits, student {size}; pad both alike")


def _twins(teachers: Sequence[str], alike: Callable[[str, str], bool]) -> list[str]:
    """Notes on teachers that are one model, or the base itself: no evidence can tell these apart."""
    found, names = [], ["base", *teachers]
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if not alike(one, other):
                continue
            if one == "base":
                found.append(f"{other} is a copy of the base: it has no shift of its own and can explain nothing")
            else:
                found.append(f"{one} and {other} are the same model: what one taught is given to both, as 'several'")
    return found


def _one_checkpoint(members: Mapping[str, Outline], at: Mapping[str, Address], one: str, other: str) -> bool:
    if one in members and other in members:
        return same_weights(members[one].path, members[other].path)
    return one in at and other in at and _one_server(at[one], at[other])


def _one_server(one: Address, other: Address) -> bool:
    return (one.url, one.model) == (other.url, other.model)


def _alike(members: CastModels, one: str, other: str) -> bool:
    if one in members.served and other in members.served:
        return _one_server(members.served[one], members.served[other])
    return one in members.loaded and other in members.loaded and _same(members.loaded[one], members.loaded[other])


def _weights(model: Model) -> Mapping[str, torch.Tensor]:
    """What tells a model from others: an adapter's factors stand for it, because its whole weights are there only while it is asked."""
    match model:
        case Worn():
            return model.shared.factors(model.name)
        case ForeignModel():
            return model.model.state_dict()
    return model.state_dict()


def _same(one: Loaded, other: Loaded) -> bool:
    if one is other:
        return True
    a, b = (_weights(e.model) for e in (one, other))
    # The smallest first: two models differ there already, and the large ones need not be read.
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in sorted(a, key=lambda n: a[n].numel()))
