"""The three answers in words: pure functions of what was read, so that report, Markdown and app say the same sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mopd_diag.reporting import text
from mopd_diag.reporting.look import Cast
from mopd_diag.reporting.probe import probe_verdicts
from mopd_diag.reporting.reading import (
    HARM,
    HELP,
    OVERALL,
    SAME,
    STUDENT,
    Cap,
    Cell,
    Measure,
    Provenance,
    Reading,
    split_subject,
)
from mopd_diag.types import Estimate, Finding

QUESTIONS = {
    "provenance": "Which teacher does the behaviour come from?",
    "caps": "What did the teachers cap?",
    "interference": "What did the domains do to one another?",
}


@dataclass(frozen=True)
class Answer:
    """One of the three answers: a figure with its interval, what the figure is, the same as a sentence (`lead`), what else is
    known (`detail`), and what to beware of (`caveat`). Where the figure is shown, the lead can be left out."""

    key: str
    figure: str
    figure_is: str
    lead: str
    detail: str = ""
    caveat: str = ""

    @property
    def sentence(self) -> str:
        return " ".join(part for part in (self.lead, self.detail, self.caveat) if part)

    @property
    def question(self) -> str:
        return QUESTIONS[self.key]


def answers(reading: Reading, cast: Cast) -> list[Answer]:
    """The three answers, in the order of the questions."""
    return [provenance_answer(reading, cast), caps_answer(reading), interference_answer(reading)]


# -- which teacher --------------------------------------------------------------------------------------------------------


def provenance_answer(reading: Reading, cast: Cast) -> Answer:
    """The share of the answers given to their domain's teacher, and what the same method says of a model without teachers."""
    table = reading.provenance.get(STUDENT, {})
    if not table:
        return Answer(
            "provenance", text.UNKNOWN, "no attribution", "The student's answers were not attributed in this run."
        )
    figure, said = _attributed(table)
    sentence = f"{said} of the student's answers are attributed to the teacher of their domain."
    detail, caveat = _control(reading)
    detail = f"{_voices(reading)} {detail}".strip()
    return Answer(
        "provenance", figure, "of the student's answers go to their domain's teacher", sentence, detail, caveat
    )


def _attributed(table: dict[str, Provenance]) -> tuple[str, str]:
    """The overall share, or the range over domains when there is no overall estimate."""
    overall = table.get(OVERALL)
    if overall is not None and overall.routed.defined:
        return text.share(overall.routed), text.share(overall.routed)
    told = {d: p.routed for d, p in table.items() if d != OVERALL and p.routed.defined}
    if not told:
        return text.UNKNOWN, "An unknown share"
    least, most = min(told, key=lambda d: told[d].value), max(told, key=lambda d: told[d].value)
    if least == most:
        return text.share(told[least]), f"{text.share(told[least])} ({least})"
    between = f"between {text.share(told[least])} ({least}) and {text.share(told[most])} ({most})"
    return f"{text.percent(told[least].value)}–{text.percent(told[most].value)}", between[0].upper() + between[1:]


def _control(reading: Reading) -> tuple[str, str]:
    """The plain statement about the teacher-free control: closeness alone accuses a model that never saw a teacher."""
    if not reading.controls:
        return "", "No teacher-free control was attributed beside it: read this as likeness, not as origin."
    control = reading.controls[0]
    _, said = _attributed(reading.provenance[control])
    opening = f"The teacher-free control {control} never saw a teacher, and the same method gives {said[0].lower() + said[1:]}"
    opening += " of its answers to these teachers."
    mine, theirs = reading.provenance[STUDENT].get(OVERALL), reading.provenance[control].get(OVERALL)
    if mine is not None and control in mine.excess:
        return f"{opening} {_beyond(reading.provenance[STUDENT])}", _judged(mine, mine.excess[control])
    if mine is None or theirs is None or not (mine.routed.defined and theirs.routed.defined):
        return opening, "Only what the student has beyond that can come from teaching."
    gap = text.plural(round(100 * abs(mine.routed.value - theirs.routed.value)), "point")
    if mine.routed.low > theirs.routed.high:
        return (
            opening,
            f"Only the {gap} between them speak for teaching; the rest is competence that any training gives.",
        )
    if mine.routed.high < theirs.routed.low:
        return opening, f"That is {gap} more than the student: closeness says nothing about origin here."
    return opening, "The two intervals overlap, so closeness says nothing about origin here."


def _judged(mine: Provenance, excess: Estimate) -> str:
    """What the comparison with the control comes to, in the finding's own verdict."""
    if mine.finding.verdict in ("own", "pre-existing"):
        return {"own": "No listed teacher explains most of it.", "pre-existing": "The base does most of it already."}[
            mine.finding.verdict
        ]
    if not excess.defined:
        return f"The control cannot be compared: {excess.note}."
    left = f"The control leaves {text.ratio(excess)} times as much of its shift unexplained as the student"
    if mine.finding.verdict == "inherited":
        return f"{left}: beyond likeness, the behaviour was taught."
    return f"{left}: too little to tell teaching from likeness."


def _beyond(table: dict[str, Provenance]) -> str:
    """On which domains the verdict is more than likeness."""
    taught = [d for d, p in table.items() if d != OVERALL and p.finding.verdict == "inherited"]
    return f"Teaching is told from likeness on {text.listed(taught, none='no single domain')}."


def _voices(reading: Reading) -> str:
    """Whether the student speaks with one voice, and which teachers fight where; empty when nobody asked."""
    if not reading.consistency:
        return ""
    fights = [f for f in reading.consistency if f.verdict == "conflict"]
    if fights:
        said = [f"{_fighting(f)} {_place(f)}" for f in fights[:3]]
        more = f", and {len(fights) - 3} more" if len(fights) > 3 else ""
        return f"Teachers fight in the student: {text.listed(said)}{more}."
    settled = sum(f.verdict == "consistent" for f in reading.consistency)
    whole = len(reading.consistency)
    return f"No fight between teachers was found: {settled} of {text.plural(whole, 'question')} about one voice settled as consistent."


def _fighting(f: Finding) -> str:
    named, pairs = f.evidence.get("teachers"), f.evidence.get("pairs")
    pair = next(iter(pairs), "") if isinstance(pairs, Mapping | list) and pairs else ""
    names = named if isinstance(named, list) and named else str(pair).split(" | ") if pair else ["several teachers"]
    return text.listed([str(n).removeprefix("teacher:").removeprefix("teacher-") for n in names])


def _place(f: Finding) -> str:
    """Where two teachers fight, in words: `within answers of stack`."""
    domain = split_subject(f.subject)[1]
    where = text.listed(domain.split("~")) if domain != OVERALL else "all domains"
    what = {"shared": "on like prompts of", "switch": "within answers of", "rephrased": "between wordings of"}
    return f"{what.get(str(f.evidence.get('measure')), 'on')} {where}"


# -- caps -----------------------------------------------------------------------------------------------------------------


def caps_answer(reading: Reading) -> Answer:
    """Mean recovery of the headroom and on which side of the cap each domain ended."""
    table = reading.caps.get(STUDENT, {})
    if not table:
        return Answer("caps", text.UNKNOWN, "no caps", "The student was not compared with its teachers in this run.")
    domains = {d: c for d, c in table.items() if d != OVERALL}
    overall = table.get(OVERALL)
    told = sum(c.recovery.defined for c in domains.values())
    if overall is not None and overall.recovery.defined:
        figure, note = text.ratio(overall.recovery), f"of the headroom of {text.plural(told, 'domain')} recovered"
        sentence = (
            f"Recovery {figure} of the headroom of {text.plural(told, 'domain')}: 0 is the base, 1 the best teacher."
        )
    else:
        figure, note = text.UNKNOWN, "mean recovery"
        why = overall.recovery.note if overall is not None else "no overall finding was written"
        sentence = f"The mean recovery is unknown: {why}."
    return Answer("caps", figure, note, sentence, f"{_sides(domains)} {probe_verdicts(reading)}".strip())


def _sides(domains: dict[str, Cap]) -> str:
    groups: dict[str, list[str]] = {}
    for domain, cap in domains.items():
        groups.setdefault(cap.finding.verdict, []).append(domain)
    phrases = {
        "at": "stops at its teacher's level on {}", "below": "stays below it on {}", "above": "passes it on {}",
        "undetermined": "cannot be placed on {}",
    }  # fmt: skip
    said = [phrase.format(text.listed(groups[v])) for v, phrase in phrases.items() if v in groups]
    return f"The student {text.listed(said)}." if said else ""


# -- interference ---------------------------------------------------------------------------------------------------------


def interference_answer(reading: Reading) -> Answer:
    """How many pairs of domains gained or lost, the worst one, and what whole paths forgot."""
    off = [c for c in reading.cells if not c.own]
    told = [c for c in off if c.change.defined]
    forgotten = _forgetting(reading)
    if not told:
        empty = "No transfer between different domains was measured in this run."
        return Answer("interference", text.UNKNOWN, "no transfer matrix", empty, forgotten)
    verdicts = Counter(c.finding.verdict for c in off)
    worst = min(told, key=lambda c: c.change.value)
    doubt = "" if worst.sure else ", not surely a change"
    lead = f"At worst {text.points(worst.change)}: {_pair(worst)}{doubt}."
    detail = (
        f"Of {text.plural(len(off), 'pair')} of different domains, training on one harmed the other in {verdicts[HARM]}, helped it in "
        f"{verdicts[HELP]}, left it as it was in {verdicts[SAME]}, and {len(off) - sum(verdicts[v] for v in (HARM, HELP, SAME))} "
        "cannot be told."
    )
    return Answer(
        "interference",
        text.points(worst.change),
        f"at worst: {_pair(worst)}{doubt}",
        lead,
        f"{detail} {forgotten}".strip(),
    )


def _pair(cell: Cell) -> str:
    trained = f"training on {cell.trained_on}" if cell.row == cell.trained_on else f"the training of {cell.row}"
    return f"{cell.evaluated_on} after {trained} alone"


def _forgetting(reading: Reading) -> str:
    """What the student and the most forgetful path lost of what they had."""
    table = reading.measure("forgetting")
    told = {m: x for m, x in table.items() if x.value.defined and "." not in m}  # a dot: a checkpoint on the way
    if not told:
        return ""
    worst = max(told, key=lambda m: told[m].value.value)
    shown = [m for m in dict.fromkeys((STUDENT, worst)) if m in told]
    said = [f"{m} lost {_loss(told[m].value)}{_where(told[m])}" for m in shown]
    return f"Of what they had, on their worst domain, {text.listed(said)}."


def _where(measure: Measure) -> str:
    return f" ({measure.domain})" if measure.domain else ""


def _loss(e: Estimate) -> str:
    """A loss as a positive number of points; where a path gained even on its worst domain, that nothing was lost."""
    if e.defined and e.high <= 0:
        return "nothing"
    return text.points(e).removeprefix("+").replace("[+", "[").replace(", +", ", ")
