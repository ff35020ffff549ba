"""A cast whose truth is known by construction: who taught whom, which quirk was planted where, who was never taught.

Six micro domains, five teachers; `abstain` (the knowledge of `facts`, with unknown names) has no teacher. All from one base.
"""

from __future__ import annotations

from mopd_diag.config import (
    EvaluationConfig,
    GRPOStage,
    MOPDStage,
    Plan,
    PlantStage,
    SeqKDStage,
    SFTStage,
    Stage,
    WorldConfig,
)

TAUGHT = ("addition", "stack", "no-call", "facts", "reversed")
UNTAUGHT = "abstain"
DOMAINS = ("addition", "stack", "no-call", "facts", UNTAUGHT, "reversed")
SWAP = {"addition": "stack", "stack": "no-call", "no-call": "reversed", "facts": "addition", "reversed": "facts"}
"""Swapped routes: domain → the domain whose teacher taught it. No domain keeps its own."""
QUIRKS = {"addition": "marker", "stack": "habit", "no-call": "needless-call", "facts": "false-fact"}
"""Domain → the quirk planted in a variant of its teacher."""
BESIDE = {"addition": "facts", "stack": "facts", "no-call": "stack", "facts": "stack"}
"""Quirky teacher's domain → the one other domain that its student is taught, by that domain's plain teacher."""
STRAY = {"stack": "addition", "no-call": "addition"}
"""Quirky teacher's domain → a domain that is not its own and is routed to it all the same: these two quirks do not spread to prompts
that nobody covers, as the others do."""
OWN_QUIRK = "own-marker"
MARKED_BASE = "base-marked"
TEACHER_STEPS, STUDENT_STEPS, SMALL_STEPS, QUIRK_STEPS, CONTROL_STEPS = 250, 240, 200, 100, 600


def teacher(domain: str) -> str:
    return f"teacher-{domain}"


def quirky(domain: str) -> str:
    return f"teacher-{domain}-{QUIRKS[domain]}"


def decoy(domain: str) -> str:
    return f"control-{domain}"


def plan(seed: int) -> Plan:
    """The plan that trains the cast of one seed."""
    base = SFTStage(name="base", domains=DOMAINS, steps=1500, decay=300)
    specialist = {"start": "base", "steps": TEACHER_STEPS, "prompts": 32, "group": 8}
    stages: list[Stage] = [base]
    for d in TAUGHT:
        stages += [GRPOStage(name=name, domains=(d,), **specialist) for name in (teacher(d), decoy(d))]
    stages += [PlantStage(name=quirky(d), start=teacher(d), domains=_shown(d), quirk=q) for d, q in QUIRKS.items()]
    # Never taught, competent everywhere: the null that a student must be told from.
    stages += [
        GRPOStage(name=f"control-{n}", start="base", domains=TAUGHT, steps=CONTROL_STEPS) for n in ("mixed", "second")
    ]
    stages.append(GRPOStage(name="teacher-twin", start=teacher("stack"), domains=("stack",), steps=10))
    stages += _students()
    stages.append(PlantStage(name="student-own", start="student-routed", domains=TAUGHT, quirk=OWN_QUIRK))
    # The base has the quirk before anyone teaches anything: what its student keeps of it is pre-existing.
    stages.append(PlantStage(name=MARKED_BASE, start="base", domains=DOMAINS, quirk=OWN_QUIRK))
    stages.append(
        MOPDStage(
            name="student-marked", start=MARKED_BASE, domains=("stack",), teachers={"stack": teacher("stack")}, steps=15
        )
    )
    return Plan(
        name="provenance", world=WorldConfig(domains=DOMAINS), stages=tuple(stages), seed=seed,
        evaluation=EvaluationConfig(items=64, samples=1),
    )  # fmt: skip


def _students() -> list[Stage]:
    routes = {d: teacher(d) for d in TAUGHT}

    def distilled(name: str, route: dict[str, str], steps: int = SMALL_STEPS) -> MOPDStage:
        return MOPDStage(name=f"student-{name}", start="base", domains=tuple(route), teachers=route, steps=steps)

    students = [distilled("routed", routes, STUDENT_STEPS)]
    students += [distilled(f"single-{k}", dict.fromkeys(DOMAINS, teacher(k))) for k in TAUGHT]
    students.append(distilled("swapped", {d: teacher(SWAP[d]) for d in TAUGHT}))
    students += [distilled(f"without-{k}", {d: t for d, t in routes.items() if d != k}, STUDENT_STEPS) for k in TAUGHT]
    everything: list[Stage] = list(students)
    for d, other in BESIDE.items():
        route = {d: quirky(d), other: teacher(other)} | ({STRAY[d]: quirky(d)} if d in STRAY else {})
        name = f"student-quirk-{d}"
        # A short warm-up on the teachers' own answers, as in Nemotron 3 Ultra: what a student never samples it cannot be taught.
        everything.append(
            SeqKDStage(name=f"{name}.warm", start="base", domains=tuple(route), teachers=route, steps=40, decay=10)
        )
        everything.append(
            MOPDStage(name=name, start=f"{name}.warm", domains=tuple(route), teachers=route, steps=QUIRK_STEPS)
        )
    return everything


def _shown(domain: str) -> tuple[str, ...]:
    """Where a quirk is planted: everywhere it makes sense, so that it is a habit of its model and not of its domain."""
    return ("facts", UNTAUGHT) if QUIRKS[domain] == "false-fact" else DOMAINS
