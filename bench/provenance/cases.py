"""Questions with a known answer: groups of tokens of a trained model's own answers, and who taught them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.provenance import cast as c
from mopd_diag.engines.scoring import score
from mopd_diag.estimators.evidence import Evidence
from mopd_diag.models.checkpoint import load_decoder
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import character_tokenizer
from mopd_diag.seeds import seed_of
from mopd_diag.training.explore import Answers, answer
from mopd_diag.worlds.micro.quirks import quirk
from mopd_diag.worlds.world import World, load_world

OWN, EXISTING = "own", "pre-existing"
PLAIN = tuple(c.teacher(d) for d in c.TAUGHT)
SPECIALISTS = tuple(c.decoy(d) for d in c.TAUGHT)
CONTROLS = ("control-mixed", "control-second")


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One subject under one list of candidates.

    `evidence` covers all its answers, in domains `domain_A` to items `item_A`. Judged are the answers `asked_A`, each as a
    whole or, with `span_T`, by those tokens only. `truth_A`: the teachers that are right (more than one: they cannot be told
    apart), `own`, or `pre-existing`. `away_A` is False where the prompt alone gives the teacher away.
    """

    kind: str
    subject: str
    evidence: Evidence
    domain_A: np.ndarray
    item_A: np.ndarray
    asked_A: np.ndarray
    truth_A: list[tuple[str, ...]]
    away_A: np.ndarray
    span_T: np.ndarray | None = None


class Cast:
    """The trained models of one seed, and the answers of any of them under any others."""

    def __init__(self, models: Path, seed: int, items: int) -> None:
        self.folder, self.seed, self.items = models, seed, items
        self.tokenizer = character_tokenizer()
        self.world: World = load_world("micro", c.DOMAINS)
        self._models: dict[str, Decoder] = {}

    def model(self, name: str) -> Decoder:
        if name not in self._models:
            self._models[name] = load_decoder(self.folder / name)
        return self._models[name]

    def answers(self, subject: str) -> Answers:
        """One sampled answer to each held-out item, domain by domain."""
        items = [i for d in c.DOMAINS for i in self.world.evaluation_items(d, self.items, ("provenance", self.seed))]
        seed = seed_of(self.seed, "provenance", subject)
        return answer(self.model(subject), self.tokenizer, self.world, items, seed=seed)

    def evidence(
        self, answers: Answers, subject: str, others: Sequence[str], base: str = "base", *, keep: bool = False
    ) -> Evidence:
        """Evidence on a subject's answers, all `others` as teachers (`Evidence.select` makes decoys of them); with `keep` the subject
        itself too, so that it is a copy of one."""
        others = [o for o in others if keep or o != subject]
        models = {n: self.model(n) for n in dict.fromkeys((base, *others))} | {f"{subject}*": self.model(subject)}
        # The starred name lets a model be judged that is a copy of a member.
        return score(answers.rollouts, models, f"{subject}*", others, base=base).evidence


def cases(cast: Cast) -> Iterator[Case]:
    """Every case of one cast."""
    everyone = (*PLAIN, *SPECIALISTS, *CONTROLS)
    for k in c.TAUGHT:
        yield from _single(cast, k, everyone)
    yield from _swapped(cast, everyone)
    yield from _routed(cast, everyone)
    for k in c.QUIRKS:
        yield _quirk(cast, k, everyone)
    for control in CONTROLS:
        yield _whole(cast, "control", control, everyone, PLAIN, lambda d: (OWN,))
    for k in c.TAUGHT:
        yield _whole(cast, "copy", c.teacher(k), everyone, PLAIN, lambda d, k=k: (c.teacher(k),), keep=True)
    yield _copy_of_base(cast, everyone)
    yield _own_quirk(cast, everyone)
    yield _marked(cast, everyone)


def _whole(
    cast,
    kind,
    subject,
    everyone,
    candidates,
    truth,
    *,
    away=lambda d: True,
    asked=lambda d: True,
    evidence=None,
    answers=None,
    keep=False,
) -> Case:
    answers = answers or cast.answers(subject)
    evidence = evidence or cast.evidence(answers, subject, everyone, keep=keep)
    decoys = [n for n in (*SPECIALISTS, *CONTROLS) if n != subject]
    domain = np.array([i.domain for i in answers.items])
    return Case(
        kind,
        subject,
        evidence.select(candidates, decoys),
        domain,
        np.array([i.item_id for i in answers.items]),
        np.array([asked(d) for d in domain]),
        [truth(d) for d in domain],
        np.array([away(d) for d in domain]),
    )


def _single(cast: Cast, k: str, everyone: Sequence[str]) -> Iterator[Case]:
    """Taught everything by one teacher: off that teacher's domain the prompt says nothing about it."""
    subject, mine = f"student-single-{k}", c.teacher(k)
    answers = cast.answers(subject)
    extra = ("teacher-twin",) if k == "stack" else ()
    evidence = cast.evidence(answers, subject, (*everyone, *extra))
    shared = {"evidence": evidence, "answers": answers}
    yield _whole(
        cast,
        "single",
        subject,
        everyone,
        PLAIN,
        lambda d: (mine,),
        away=lambda d: d != k,
        asked=lambda d: d != k,
        **shared,
    )
    rest = [t for t in PLAIN if t != mine]
    yield _whole(cast, "unlisted", subject, everyone, rest, lambda d: (OWN,), **shared)
    if extra:
        yield _whole(cast, "twin", subject, everyone, (*PLAIN, *extra), lambda d: (mine, *extra), **shared)


def _swapped(cast: Cast, everyone: Sequence[str]) -> Iterator[Case]:
    truth = lambda d: (c.teacher(c.SWAP.get(d, d)),)  # noqa: E731
    yield _whole(cast, "swapped", "student-swapped", everyone, PLAIN, truth, asked=lambda d: d in c.SWAP)


def _routed(cast: Cast, everyone: Sequence[str]) -> Iterator[Case]:
    """The student of all teachers; and the same with a domain's own teacher left off the list."""
    answers = cast.answers("student-routed")
    shared = {"evidence": cast.evidence(answers, "student-routed", everyone), "answers": answers}
    yield _whole(
        cast,
        "routed",
        "student-routed",
        everyone,
        PLAIN,
        lambda d: (c.teacher(d),),
        away=lambda d: False,
        asked=lambda d: d in c.TAUGHT,
        **shared,
    )
    for k in c.TAUGHT:
        rest = [t for t in PLAIN if t != c.teacher(k)]
        yield _whole(
            cast, "unlisted", "student-routed", everyone, rest, lambda d: (OWN,), asked=lambda d, k=k: d == k, **shared
        )


def _quirk(cast: Cast, k: str, everyone: Sequence[str]) -> Case:
    """A planted quirk where it shows off its teacher's domain; judged by its own tokens."""
    subject = f"student-quirk-{k}"
    candidates = [c.quirky(t) if t == k else c.teacher(t) for t in c.TAUGHT]
    answers = cast.answers(subject)
    evidence = cast.evidence(answers, subject, (*everyone, c.quirky(k)))
    whole = _whole(
        cast,
        "quirk",
        subject,
        everyone,
        candidates,
        lambda d: (c.quirky(k),),
        asked=lambda d: d != k,
        evidence=evidence,
        answers=answers,
    )
    return _spans(whole, answers, c.QUIRKS[k])


def _own_quirk(cast: Cast, everyone: Sequence[str]) -> Case:
    """A quirk planted in the student after it was taught: no teacher has it."""
    answers = cast.answers("student-own")
    whole = _whole(cast, "own", "student-own", everyone, PLAIN, lambda d: (OWN,), answers=answers)
    return _spans(whole, answers, c.OWN_QUIRK)


def _marked(cast: Cast, everyone: Sequence[str]) -> Case:
    """The base has the quirk already; its student, taught in one domain only, keeps it elsewhere."""
    answers = cast.answers("student-marked")
    evidence = cast.evidence(answers, "student-marked", everyone, base=c.MARKED_BASE)
    whole = _whole(
        cast,
        "marked",
        "student-marked",
        everyone,
        PLAIN,
        lambda d: (EXISTING,),
        asked=lambda d: d != "stack",
        evidence=evidence,
        answers=answers,
    )
    return _spans(whole, answers, c.OWN_QUIRK)


def _copy_of_base(cast: Cast, everyone: Sequence[str]) -> Case:
    return _whole(cast, "base", "base", everyone, PLAIN, lambda d: (EXISTING,))


def _spans(case: Case, answers: Answers, name: str) -> Case:
    """The same case, judged by the tokens that show a quirk, in the answers that do."""
    spans = quirk(name).spans
    shows = [spans(i, t) for i, t in zip(answers.items, answers.texts, strict=True)]
    evidence = case.evidence
    mask = np.zeros(len(evidence.answer_T), dtype=bool)
    for number, found in enumerate(shows):
        for start, end in found:  # one token a character
            mask |= (evidence.answer_T == number) & (evidence.position_T >= start) & (evidence.position_T < end)
    return replace(case, asked_A=case.asked_A & np.array([bool(s) for s in shows]), span_T=mask)


def probability(cast: Cast, answers: Answers, name: str) -> np.ndarray:
    """P(answer | model) of each answer's own tokens."""
    evidence = score(
        answers.rollouts,
        {name: cast.model(name), "base": cast.model("base"), PLAIN[0]: cast.model(PLAIN[0])},
        name,
        [PLAIN[0]],
    ).evidence
    logp = np.bincount(evidence.answer_T, weights=evidence.logp_TM[:, 0] * evidence.own_T, minlength=len(answers.items))
    return np.exp(logp)


def one_thread() -> None:
    """Numbers must not depend on how many cores are free."""
    torch.set_num_threads(1)
