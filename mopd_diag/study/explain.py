"""One failed answer token by token: who explains each token, where it went wrong, and what would have saved it.

The value of a prefix is measured by continuations (`study.prefixes`), the pivot read off them (`estimators.pivot`), and what each model
would have said there is compared and put in. Explanations are kept in the run directory, so that a repeated call costs nothing.

Axis letters: T tokens of the answer, V vocabulary.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch.nn import functional as F

from mopd_diag.diagnostics.attribution import attribute
from mopd_diag.diagnostics.explained import SCHEMA, explanation_path
from mopd_diag.engines.scoring import score
from mopd_diag.estimators.conflict import find_conflict
from mopd_diag.estimators.draws import Floats
from mopd_diag.estimators.pivot import Pivot, find_pivot, gain, share
from mopd_diag.models.decoder import Decoder
from mopd_diag.runs.directory import RunDirectory, write_json
from mopd_diag.runs.meter import Meter
from mopd_diag.seeds import seed_of
from mopd_diag.study.prefixes import Prefix
from mopd_diag.study.workbench import BASE, STUDENT, Answer, Workbench, open_workbench

SHOWN = 5
"""Alternatives that are shown of each model; the random token is one of the student's."""
POSSIBLE = 0.3
"""Probability from which on a token is looked at as the possible pivot of an answer that has no sure one."""
Spent = Callable[[int, int], None]
"""Told as it goes: continuations made, tokens they took."""


# -- cost, and what is kept -----------------------------------------------------------------------------------------------


def cost(bench: Workbench, failed: Sequence[Mapping[str, Any]], rollouts: int) -> tuple[int, int]:
    """Continuations of an explanation of each answer, and the most tokens they can take."""
    n = tokens = 0
    for row in failed:
        answer = bench.answers[row["item_id"], row["sample"]]
        judges = 1 + (bench.route.get(str(row["domain"])) is not None)
        rooms = [bench.continuer.room(p) for p in answer.prefixes]
        n += rollouts * (judges * len(rooms) + 4)
        tokens += rollouts * (judges * sum(rooms) + 4 * max(rooms, default=0))
    return n, tokens


def kept(run: RunDirectory, row: Mapping[str, Any], rollouts: int | None, seed: int) -> dict[str, Any] | None:
    """The explanation of a failed answer that is on disk, when it is of this answer, seed and number of rollouts (None: any)."""
    path = explanation_path(run, str(row["item_id"]), int(row["sample"]))
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # half a file from elsewhere: make it again
        return None
    asked = {"schema": SCHEMA, "item_id": row["item_id"], "response": row["response"], "seed": seed}
    asked |= {} if rollouts is None else {"rollouts": rollouts}
    return found if all(found.get(k) == v for k, v in asked.items()) else None


def chosen(failed: pd.DataFrame, per_domain: int) -> list[dict[str, Any]]:
    """One failed answer of each of up to `per_domain` items a domain, those that were attributed first."""
    order = failed.assign(untraced=failed["attributed"] == "").sort_values("untraced", kind="stable")
    first = order.drop_duplicates(["domain", "item_id"]).groupby("domain", sort=False).head(per_domain)
    return first.sort_index().to_dict("records")


def explain_all(
    run: RunDirectory, failed: Sequence[Mapping[str, Any]], *, rollouts: int, seed: int, console: Console
) -> list[dict[str, Any]]:
    """Explanations of failed answers (rows of `failed_answers`): those that are kept in the run as they are, the others made now.

    The cost is stated on `console` before it is paid.
    """
    found = {n: kept(run, row, rollouts or None, seed) for n, row in enumerate(failed)}
    missing = {n: row for n, row in enumerate(failed) if found[n] is None}
    if len(missing) < len(found):
        console.print(f"[dim]{len(found) - len(missing)} of {len(found)} are kept in {run.path / 'explain'}[/]")
    if missing:
        bench = open_workbench(run, list(missing.values()))
        with Meter(console, *cost(bench, list(missing.values()), rollouts)) as meter:
            for n, row in missing.items():
                found[n] = explain(bench, row, rollouts=rollouts, seed=seed, spent=meter.spent)
    return [d for d in found.values() if d is not None]


def explain(
    bench: Workbench, row: Mapping[str, Any], *, rollouts: int = 64, seed: int = 0, spent: Spent = lambda *_: None
) -> dict[str, Any]:
    """The explanation of one failed answer (`row`: of `failed_answers`), written to the run directory.

    With `rollouts` 0 nothing is continued and nothing written: value, pivot and counterfactual are null.
    """
    began = time.perf_counter()
    answer = bench.answers[row["item_id"], row["sample"]]
    routed = bench.route.get(str(row["domain"]))
    tokens = _tokens(bench, row, answer)
    spending = _Spending(spent)
    values = _values(bench, row, answer, routed, rollouts, seed, spending) if rollouts else {}
    pivot, by = _pivot(values, rollouts, (seed, "explain", row["item_id"], int(row["sample"]), "pivot"))
    index, how = _place(answer, tokens, pivot, routed)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        **{k: row[k] for k in ("item_id", "domain", "prompt", "response", "failure", "teacher", "routed", "reason")},
        "sample": int(row["sample"]),
        "share_own": _number(row["share_own"]),
        "target": answer.item.target,
        "truncated": not answer.ended,
        "seed": seed,
        "rollouts": rollouts,
        "temperature": bench.continuer.temperature,
        "tokens": tokens,
        "everywhere": _everywhere(bench, answer),
        "values": {m: _curve(answer, v, rollouts) for m, v in values.items()} or None,
        "pivot": None if pivot is None else _pivot_table(answer, pivot, by),
        "alternatives": None,
        "conflict": None,
        "counterfactual": None,
    }
    if index is not None:
        p_V = {m: _next(model, answer.prefixes[index]) for m, model in bench.models.items()}
        written = answer.written[index]
        document["alternatives"] = _alternatives(bench, answer, index, how, p_V, written)
        if pivot is not None and pivot.at is not None and routed is not None:
            document["conflict"] = _conflict(bench, p_V, written, routed)
        if rollouts and routed is not None:
            address = (seed, "explain", row["item_id"], document["sample"], "counterfactual")
            document["counterfactual"] = _put_in(bench, answer, index, p_V, routed, rollouts, address, spending)
    document["cost"] = {
        "continuations": spending.continuations,
        "tokens": spending.tokens,
        "seconds": round(time.perf_counter() - began, 3),
    }
    if rollouts:
        write_json(explanation_path(bench.run, str(row["item_id"]), document["sample"]), document)
    return document


@dataclass(slots=True)
class _Spending:
    told: Spent
    continuations: int = 0
    tokens: int = 0

    def add(self, continuations: int, tokens: int) -> None:
        self.continuations += continuations
        self.tokens += tokens
        self.told(continuations, tokens)


# -- the tokens -----------------------------------------------------------------------------------------------------------


def _tokens(bench: Workbench, row: Mapping[str, Any], answer: Answer) -> list[dict[str, Any]]:
    """The trace of the answer; made now for a failure that was not traced."""
    rows = bench.trace[(bench.trace["item_id"] == row["item_id"]) & (bench.trace["sample"] == row["sample"])]
    if rows.empty:
        models = {m: bench.models[m] for m in (STUDENT, BASE, *bench.teachers)}
        scored = score(answer.rollout, models, STUDENT, bench.teachers)
        text = pd.DataFrame(
            {"token_id": scored.token_T, "token": [bench.tokenizer.token(int(t)) for t in scored.token_T]}
        )
        record = pd.DataFrame(
            [{k: row[k] for k in ("item_id", "sample", "domain", "prompt", "response")} | {"score": 0.0}]
        )
        rows = attribute(scored.evidence, record, text, routed=bench.route).tokens
    tokens = []
    for r in rows.sort_values("position").to_dict("records"):
        named = lambda prefix, r=r: {c.removeprefix(prefix): _number(v) for c, v in r.items() if c.startswith(prefix)}  # noqa: E731
        tokens.append({
            "position": int(r["position"]), "token_id": int(r["token_id"]), "token": str(r["token"]), "sampled": bool(r["sampled"]),
            "label": str(r["label"]), "set": str(r["set"]), "confidence": _number(r["confidence"]), "contested": bool(r["contested"]),
            "logp": named("logp_"), "shares": named("share_"),
        })  # fmt: skip
    return tokens


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


# -- values and pivot -----------------------------------------------------------------------------------------------------


def _values(
    bench: Workbench, row: Mapping[str, Any], answer: Answer, routed: str | None, rollouts: int, seed: int, spending: _Spending
) -> dict[str, list[int]]:  # fmt: skip
    """Successes of the student's and the routed teacher's continuations of every prefix."""
    found = {}
    for member in dict.fromkeys(m for m in (STUDENT, routed) if m):
        address = (seed, "explain", row["item_id"], int(row["sample"]), "value", member)
        done = bench.continuer.run(bench.models[member], answer.prefixes, rollouts, seed_of(*address))
        spending.add(rollouts * len(answer.prefixes), done.tokens)
        found[member] = done.successes
    return found


def _pivot(values: Mapping[str, list[int]], rollouts: int, address: tuple[Any, ...]) -> tuple[Pivot | None, str]:
    """The student's pivot and whose it is; the routed teacher's where the student's value shows none and the teacher's does."""
    first: Pivot | None = None
    for member, successes in values.items():
        found = find_pivot(successes, [rollouts] * len(successes), seed=seed_of(*address, member))
        if found.at is not None:
            return found, member
        first = first or found
    return first, STUDENT


def _place(
    answer: Answer, tokens: Sequence[Mapping[str, Any]], pivot: Pivot | None, routed: str | None
) -> tuple[int | None, str]:
    """Which of the student's tokens to look at, and why that one."""
    if pivot is not None and pivot.at is not None:
        return pivot.at, "pivot"
    if pivot is not None and pivot.probability_T[pivot.likeliest] >= POSSIBLE:
        return pivot.likeliest, "candidate"
    if routed is None:
        return None, ""
    logp = [tokens[t]["logp"] for t in answer.positions]
    against = [(x[STUDENT] or 0.0) - (x.get(routed) or 0.0) for x in logp]
    return int(np.argmax(against)), "suspect"


def _curve(answer: Answer, successes: Sequence[int], rollouts: int) -> list[dict[str, Any]]:
    """V before each of the student's tokens; behind the last one it is 0, because the answer failed."""
    found = [(t, k, share(k, rollouts)) for t, k in zip(answer.positions, successes, strict=True)]
    return [{"position": t, "successes": k, "value": e.value, "low": e.low, "high": e.high} for t, k, e in found]


def _pivot_table(answer: Answer, pivot: Pivot, by: str) -> dict[str, Any]:
    return {
        "position": None if pivot.at is None else answer.positions[pivot.at],
        "likeliest": answer.positions[pivot.likeliest],
        "by": by,
        "probability": float(pivot.probability_T[pivot.likeliest]),
        "fall": pivot.fall.to_dict(),
        "candidates": [answer.positions[t] for t in pivot.candidates],
        "reason": pivot.reason,
    }


# -- what each model would have said --------------------------------------------------------------------------------------


@torch.inference_mode()
def _next(model: Decoder, prefix: Prefix) -> Floats:
    """Probabilities [V] of the token that follows a prefix."""
    ids = torch.tensor([[*prefix.prompt, *prefix.answer]], device=model.device)
    hidden = model.hidden_at(ids, torch.tensor([ids.shape[1] - 1], device=model.device))
    return torch.softmax(F.linear(hidden, model.head_VD)[0].double(), -1).cpu().numpy()


@torch.inference_mode()
def _everywhere(bench: Workbench, answer: Answer) -> dict[str, dict[str, Any]]:
    """Position (as text, for JSON) -> member -> the chance of the token that was written and its likeliest ones there."""
    if not answer.written:
        return {}
    last = answer.prefixes[-1]
    starts = [len(p.prompt) + len(p.answer) - 1 for p in answer.prefixes]
    ids = torch.tensor([[*last.prompt, *last.answer]])
    found: dict[str, dict[str, Any]] = {str(p): {} for p in answer.positions}
    for member, model in bench.models.items():
        hidden_TD = model.hidden_at(ids.to(model.device), torch.tensor(starts, device=model.device))
        p_TV = torch.softmax(F.linear(hidden_TD, model.head_VD).double(), -1).cpu().numpy()
        for place, p, written in zip(answer.positions, p_TV, answer.written, strict=True):
            found[str(place)][member] = _likeliest(bench, p, written)
    return found


def _likeliest(bench: Workbench, p: Floats, written: int) -> dict[str, Any]:
    best = np.argsort(-p, kind="stable")[:SHOWN]
    top = [{"token_id": int(v), "token": bench.tokenizer.token(int(v)), "p": float(p[v])} for v in best]
    return {"p_own": float(p[written]), "top": top}


def _alternatives(
    bench: Workbench, answer: Answer, index: int, how: str, p_V: Mapping[str, Floats], written: int
) -> dict[str, Any]:
    """The likeliest tokens of each model at one place; `how`: the pivot, a candidate for it, or only a suspect."""
    return {
        "position": answer.positions[index],
        "how": how,
        "token": bench.tokenizer.token(written),
        "members": {member: _likeliest(bench, p, written) for member, p in p_V.items()},
    }


def _conflict(bench: Workbench, p_V: Mapping[str, Floats], written: int, routed: str) -> dict[str, Any] | None:
    """Whether another teacher pulled against the routed one here, and for which controls, which none of them taught, the same holds."""
    others = [t for t in bench.teachers if t != routed]
    found = find_conflict(p_V, written, student=STUDENT, base=BASE, routed=routed, others=others)
    if found is None:
        return None
    alike = [
        c
        for c in bench.controls
        if find_conflict(p_V, written, student=c, base=BASE, routed=routed, others=[found.teacher]) is not None
    ]
    return {
        "routed": routed,
        "teacher": found.teacher,
        "token": bench.tokenizer.token(found.token),
        "won": found.won,
        "divergence": found.divergence,
        "moved": found.moved,
        "controls": alike,
    }


# -- the counterfactual ---------------------------------------------------------------------------------------------------


def _put_in(
    bench: Workbench, answer: Answer, index: int, p_V: Mapping[str, Floats], routed: str, rollouts: int,
    address: tuple[Any, ...], spending: _Spending,
) -> dict[str, Any]:  # fmt: skip
    """Put a token in at one place and let the student go on: four ways to choose it, fresh continuations for each.

    `own`: the token it wrote. `teacher`: the routed teacher's likeliest; where that is the same, its likeliest other. `redraw`: drawn
    from the student's own distribution without the token it wrote. `random`: the student's `SHOWN` likeliest tokens but for these
    two, in turn.
    """
    rng = np.random.default_rng(seed_of(*address, "tokens"))
    written, favourite = answer.written[index], int(p_V[routed].argmax())
    order = [int(v) for v in np.argsort(-p_V[routed], kind="stable")]
    token = next(v for v in order if v != written)
    redrawn = p_V[STUDENT].copy()
    redrawn[written] = 0.0
    rest = [int(v) for v in np.argsort(-p_V[STUDENT], kind="stable") if v not in (written, token)][:SHOWN]
    drawn = {
        "own": [written] * rollouts,
        "teacher": [token] * rollouts,
        "redraw": rng.choice(len(redrawn), rollouts, p=redrawn / redrawn.sum()).tolist() if redrawn.sum() > 0 else [],
        "random": [rest[i % len(rest)] for i in range(rollouts)] if rest else [],
    }
    prefixes = [bench.continuer.put_in(answer.prefixes[index], v) for tokens in drawn.values() for v in tokens]
    done = bench.continuer.run(bench.models[STUDENT], prefixes, 1, seed_of(*address))
    spending.add(len(prefixes), done.tokens)
    counts, start = {}, 0
    for arm, tokens in drawn.items():
        counts[arm] = (sum(done.successes[start : start + len(tokens)]), len(tokens))
        start += len(tokens)
    text = bench.tokenizer.token
    return {
        "position": answer.positions[index],
        "arms": {arm: share(*each).to_dict() for arm, each in counts.items()},
        "own_token": text(written),
        "teacher_token": text(token),
        "teacher_p": float(p_V[routed][token]),
        "teacher_agrees": favourite == written,
        "random_tokens": [text(v) for v in rest],
        "gain_over_own": gain(counts["own"], counts["teacher"], seed=seed_of(*address, "own")).to_dict(),
        "gain_over_random": gain(counts["random"], counts["teacher"], seed=seed_of(*address, "random")).to_dict(),
    }
