"""What the report reads out of findings: caps, transfer, provenance, forgetting, and what could not be told.

Evidence keys that are used (all optional; what is missing is left out of the page):

- `cap`, subject `MODEL/DOMAIN` or `MODEL/overall`, estimate = recovery: `base`, `student`, `best_teacher` (estimates as dicts),
  `gap` (student − best teacher), `teacher` (name), `partition` (name -> number of items); verdict `below`, `at`, `above` or
  `undetermined`. Of models other than `student` only the overall recovery is shown.
- `cap` with an id that begins with `cap-binding-`, subject `probe-student/DOMAIN` or `probe-student/overall`, estimate = probe − best
  teacher: `gain` (probe − student), `probe`, `student`, `best_teacher`, `teacher`, `steps`, `cost`; verdict `binding`, `not-binding` or
  `undetermined`.
- `interference`, a cell of the transfer matrix, estimate = change against the base: `trained_on` (domains joined by `+`),
  `evaluated_on`, `own_domain`; verdict `harm`, `help`, `none` or `undetermined`.
- `interference`, forgetting or regret of a path: `measure` (`forgetting`, `regret`, `backward_transfer`), `model`, `domain`;
  positive is bad.
- `attribution`, subject `MODEL/DOMAIN` or `MODEL/overall`, estimate = share of the answers given to the domain's own teacher:
  `shares` (label -> share), `baseline_routed`, `baseline_likelihood` (share, or a name). MODEL other than `student`: the control.
  `excess` (control -> estimate as dict: how many times as much of its shift the control leaves unexplained); verdict `inherited`,
  `own`, `pre-existing`, `undetermined`, or `control`.
- `attribution` with an id that begins with `consistency-`: `measure` (which question, `CONSISTENCY`); subject `MODEL/DOMAIN`,
  `MODEL/overall` or `MODEL/DOMAIN~DOMAIN`.
- `failure`, subject `MODEL/DOMAIN` or `MODEL/overall`: `shares` (class -> estimate as dict), `n_failed`, `cases` (class -> list of
  `item_id`, `sample`, `teacher`); or one case in `item_id`, `sample`, `pivot` (position).
- any kind: `why` (or `reason`, `note`), a sentence in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mopd_diag.types import Estimate, Finding

OVERALL = "overall"
STUDENT = "student"
OPEN_VERDICTS = {"undetermined", "abstain", "abstained", "unknown", "inconclusive", "undefined"}
HARM, HELP, SAME = "harm", "help", "none"
MEASURES = ("forgetting", "regret", "backward_transfer")
CONSISTENCY = {
    "shared": "prompts of two domains that look alike",
    "between": "a domain without a teacher",
    "switch": "one answer, several teachers",
    "rephrased": "one question, several wordings",
    "hallucination": "wrong facts",
}
"""What is asked about a student of several teachers, by `measure`."""


@dataclass(frozen=True)
class Cap:
    """One domain's recovery with what it was computed from; parts that the finding lacks are None."""

    finding: Finding
    recovery: Estimate
    base: Estimate | None
    student: Estimate | None
    best: Estimate | None
    gap: Estimate | None
    teacher: str | None
    partition: dict[str, int]


@dataclass(frozen=True)
class Cell:
    """What training on one domain did to the accuracy on another."""

    finding: Finding
    trained_on: str
    evaluated_on: str
    change: Estimate

    @property
    def row(self) -> str:
        """The name of the specialist's row: its domain, or the model when it has several."""
        return (
            self.trained_on
            if "+" not in self.trained_on
            else str(self.finding.evidence.get("model") or self.trained_on)
        )

    @property
    def own(self) -> bool:
        """Whether the domain is one of those trained on."""
        return bool(self.finding.evidence.get("own_domain", self.evaluated_on in self.trained_on.split("+")))

    @property
    def sure(self) -> bool:
        """Whether the verdict is a change, for worse or for better."""
        return self.finding.verdict in (HARM, HELP)


@dataclass(frozen=True)
class Provenance:
    """To whom the answers of a model on a domain were attributed."""

    finding: Finding
    routed: Estimate
    shares: dict[str, float]
    baselines: dict[str, Any]
    excess: dict[str, Estimate]


@dataclass(frozen=True)
class Case:
    """One failed answer that a finding points at, with its class and the teacher it comes from ("" for none)."""

    finding: Finding
    kind: str
    item_id: str
    sample: int
    teacher: str = ""
    pivot: int | None = None

    @property
    def words(self) -> str:
        """The class in a few words: `inherited from teacher-math`."""
        if not self.teacher:
            return self.kind
        return f"{self.kind}: {self.teacher} solves it" if self.kind == "lost" else f"{self.kind} from {self.teacher}"


@dataclass(frozen=True)
class Measure:
    """Forgetting or regret of one path, in its worst domain."""

    finding: Finding
    name: str
    model: str
    domain: str
    value: Estimate


@dataclass(frozen=True)
class Reading:
    """All findings, sorted by question. Outer keys are models, inner keys domains or `overall`."""

    findings: list[Finding]
    caps: dict[str, dict[str, Cap]] = field(default_factory=dict)
    provenance: dict[str, dict[str, Provenance]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    failures: dict[str, Finding] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    unknown: list[Finding] = field(default_factory=list)
    consistency: list[Finding] = field(default_factory=list)
    probe: dict[str, Finding] = field(default_factory=dict)
    """Whether the cap is binding, by domain and `overall`; empty without a probe."""

    @classmethod
    def of(cls, findings: Iterable[Finding], domains: Iterable[str] = ()) -> Reading:
        """Sort findings; those that fit no question stay in `findings`, which the page prints whole."""
        reading = cls(list(findings))
        known = set(domains)
        for finding in reading.findings:
            reading._take(finding, known)
        return reading

    def _take(self, f: Finding, domains: set[str]) -> None:
        if is_open(f):
            self.unknown.append(f)
        model, domain = split_subject(f.subject)
        value = f.estimate or Estimate.undefined(reason_of(f))
        about_domain = domain == OVERALL or not domains or domain in domains
        if f.kind == "cap" and f.id.startswith("cap-binding-"):
            self.probe[domain] = f
        elif f.kind == "cap" and about_domain:
            self.caps.setdefault(model, {})[domain] = _cap(f, value)
        elif f.kind == "attribution" and f.id.startswith("consistency-"):
            self.consistency.append(f)
        elif f.kind == "attribution" and about_domain:
            self.provenance.setdefault(model, {})[domain] = _provenance(f, value)
        elif f.kind == "interference" and {"trained_on", "evaluated_on"} <= f.evidence.keys():
            self.cells.append(Cell(f, str(f.evidence["trained_on"]), str(f.evidence["evaluated_on"]), value))
        elif f.kind == "interference":
            name = str(f.evidence.get("measure") or next((m for m in MEASURES if m in f.subject or m in f.id), ""))
            if name in MEASURES:
                self.measures.append(
                    Measure(f, name, str(f.evidence.get("model", model)), str(f.evidence.get("domain", "")), value)
                )
        elif f.kind == "failure":
            if about_domain and f.evidence.get("shares"):
                self.failures[domain] = f
            if domain != OVERALL:
                self.cases.extend(_cases(f))

    @property
    def controls(self) -> list[str]:
        """Models that were attributed although no teacher taught them."""
        return [m for m in self.provenance if m != STUDENT]

    def measure(self, name: str) -> dict[str, Measure]:
        """By model."""
        return {m.model: m for m in self.measures if m.name == name}


def _cap(f: Finding, recovery: Estimate) -> Cap:
    base, student, best, gap = (as_estimate(f.evidence.get(k)) for k in ("base", "student", "best_teacher", "gap"))
    partition, teacher = f.evidence.get("partition"), f.evidence.get("teacher")
    counts = partition.items() if isinstance(partition, Mapping) else ()
    parts = {str(k): int(v) for k, v in counts if _number(v)}
    return Cap(f, recovery, base, student, best, gap, teacher if isinstance(teacher, str) else None, parts)


def _provenance(f: Finding, routed: Estimate) -> Provenance:
    shares, excess = (f.evidence.get(k) if isinstance(f.evidence.get(k), Mapping) else {} for k in ("shares", "excess"))
    table = {str(k): float(v) for k, v in dict(shares or {}).items() if _number(v)}
    baselines = {k.removeprefix("baseline_"): v for k, v in f.evidence.items() if k.startswith("baseline_")}
    beyond = {str(k): as_estimate(v) for k, v in dict(excess or {}).items()}
    return Provenance(f, routed, table, baselines, {k: e for k, e in beyond.items() if e is not None})


def _cases(f: Finding) -> list[Case]:
    """The cases of a finding, one of each class before the second of any, the commonest class first."""
    table = f.evidence.get("cases")
    if not isinstance(table, Mapping):
        if not f.evidence.get("item_id"):
            return []
        table = {f.verdict: [f.evidence]}
    found = []
    for kind in sorted(table, key=lambda k: k != f.verdict):
        for turn, c in enumerate(table[kind] if isinstance(table[kind], list) else []):
            if isinstance(c, Mapping) and c.get("item_id"):
                teacher, sample = str(c.get("teacher") or ""), int(c.get("sample", 0))
                found.append((turn, Case(f, str(kind), str(c["item_id"]), sample, teacher, c.get("pivot"))))
    return [case for _, case in sorted(found, key=lambda tc: tc[0])]


def split_subject(subject: str) -> tuple[str, str]:
    """`student/addition` -> (`student`, `addition`); a subject without a domain is about all of them."""
    model, slash, domain = subject.partition("/")
    return model, domain if slash and domain not in ("mean", "all") else OVERALL


def is_open(f: Finding) -> bool:
    """Whether the question of a finding stayed open: an undetermined verdict or a value that could not be computed."""
    return f.verdict in OPEN_VERDICTS or (f.estimate is not None and not f.estimate.defined)


def words_of(f: Finding) -> str:
    """What a finding says about itself in words; empty when it says nothing."""
    told = next((str(f.evidence[k]) for k in ("why", "reason", "note") if f.evidence.get(k)), "")
    return told or (f.estimate.note if f.estimate is not None else "")


def reason_of(f: Finding) -> str:
    """Why a question stayed open."""
    if words_of(f):
        return words_of(f)
    p = f.evidence.get("p_adjusted")
    if _number(p):
        return f"neither surely a change (p = {p:.2g} after correction for the whole matrix) nor surely none"
    if f.estimate is not None and f.estimate.defined:
        return "its interval allows more than one verdict"
    return "no reason was recorded"


def as_estimate(value: Any) -> Estimate | None:
    """An estimate written as JSON (null is NaN), or None when it is not one."""
    if isinstance(value, Estimate):
        return value
    if not isinstance(value, Mapping) or not {"value", "low", "high"} <= value.keys():
        return None
    known: dict[str, Any] = {k: value[k] for k in Estimate.__dataclass_fields__ if k in value}
    known |= {k: math.nan for k, v in known.items() if v is None}
    return Estimate(**known)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
