"""Is the cap binding? The probe's table and sentences, for report, Markdown, terminal and app alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mopd_diag.reporting import text
from mopd_diag.reporting.reading import OVERALL, STUDENT, Reading, as_estimate, words_of
from mopd_diag.reporting.tables import Table
from mopd_diag.types import Finding

VERDICTS = {"binding": "▲ binding", "not-binding": "= not binding", "undetermined": "? undetermined"}
ASK = "mopd-diag caps DIR --probe"
COUNTS = {"rollouts": "rollouts", "tokens_sampled": "tokens sampled", "tokens_trained": "trained", "flops": "FLOPs"}


def probe_table(reading: Reading) -> Table:
    """A row a domain: where student, best teacher and probe are, the probe against both, and the verdict."""
    domains = sorted(reading.probe, key=lambda d: d == OVERALL)
    rows = []
    for domain in domains:
        f = reading.probe[domain]
        levels = (as_estimate(f.evidence.get(k)) for k in ("student", "best_teacher", "probe"))
        gain = as_estimate(f.evidence.get("gain"))
        row = ["all domains" if domain == OVERALL else domain, VERDICTS.get(f.verdict, f.verdict)]
        row += ["–" if e is None else text.share(e) for e in levels]
        row += ["–" if e is None else text.points(e, unit=False) for e in (f.estimate, gain)]
        rows.append([*row, str(f.evidence.get("teacher") or "–"), words_of(f) or "–"])
    columns = [
        "domain",
        "cap",
        "student",
        "best teacher",
        "probe",
        "probe − teacher",
        "probe − student",
        "which",
        "in words",
    ]
    caption = "A short RL run from the student, the probe, on the same items; differences in percentage points"
    strong = frozenset({len(rows) - 1}) if OVERALL in reading.probe else frozenset[int]()
    finds = [reading.probe[d].id for d in domains]
    return Table(caption, columns, rows, frozenset({"cap", "which", "in words"}), strong, finds=finds)


def probe_sentence(reading: Reading) -> str:
    """What the probe found and what it cost; without one, how to get it. Empty for a run without caps."""
    if not reading.probe:
        if STUDENT not in reading.caps:
            return ""
        return f"Whether the cap is binding was not probed: `{ASK}` trains a short RL run from the student and says so."
    first = next(iter(reading.probe.values()))
    return f"{probe_verdicts(reading)} {_cost(first)} One probe from one seed: the intervals are over items."


def probe_verdicts(reading: Reading) -> str:
    """On which domains the teachers' level holds the student back; empty without a probe."""
    groups: dict[str, list[str]] = {}
    for domain, f in reading.probe.items():
        if domain != OVERALL:
            groups.setdefault(f.verdict, []).append(domain)
    phrases = {"binding": "binds on {}", "not-binding": "does not bind on {}", "undetermined": "cannot be judged on {}"}
    said = [phrase.format(text.listed(groups[v])) for v, phrase in phrases.items() if v in groups]
    return f"By a short RL run from the student, the cap {text.listed(said)}." if said else ""


def _cost(f: Finding) -> str:
    cost = f.evidence.get("cost")
    if not isinstance(cost, Mapping):
        return ""
    shares = cost.get("share_of_students_path")
    of = dict(shares) if isinstance(shares, Mapping) else {}
    said = [f"{text.count(float(cost[c]))} {word}{_of(of.get(c))}" for c, word in COUNTS.items() if _known(cost.get(c))]
    if _known(cost.get("seconds")):
        said.append(f"{text.duration(float(cost['seconds']))}{_of(of.get('seconds'))}")
    return (
        f"Its {f.evidence.get('steps', '?')} steps cost {text.listed(said)}; in brackets, of the student's whole path."
    )


def _of(share: Any) -> str:
    return f" ({text.percent(share)})" if _known(share) else ""


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
