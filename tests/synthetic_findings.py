"""SYNTHETIC findings: invented numbers in the shape of a real quickstart run's. See `synthetic_run`."""

from __future__ import annotations

from mopd_diag.runs.directory import RunDirectory
from mopd_diag.types import Estimate, Finding

TAUGHT = {"math": "addition", "code": "stack", "agent": "lookup", "style": "reversed"}
NAMES = list(TAUGHT.values())
ROUTE = {domain: teacher for teacher, domain in TAUGHT.items()}
CONTROL = "rival-mixed-rl"
ACCURACY = {
    "base": (0.62, 0.41, 0.58, 0.36),
    "teacher-math": (0.97, 0.38, 0.52, 0.11),
    "teacher-code": (0.45, 0.79, 0.58, 0.24),
    "teacher-agent": (0.55, 0.36, 0.97, 0.30),
    "teacher-style": (0.24, 0.37, 0.50, 0.97),
    "student": (0.97, 0.73, 0.96, 0.95),
    "rival-mixed-rl": (0.96, 0.70, 0.95, 0.94),
    "rival-sequential-rl": (0.47, 0.44, 0.93, 0.98),
    "rival-seqkd": (0.94, 0.66, 0.89, 0.92),
    "rival-average": (0.90, 0.55, 0.80, 0.74),
}


def interval(value: float, half: float, unit: str, *, n: int = 60, note: str = "") -> Estimate:
    return Estimate(
        value, value - half, value + half, unit=unit, n_items=n, n_clusters=n, method="cluster bootstrap", note=note
    )


def synthetic_findings() -> list[Finding]:
    return [*_preflight(), *_attribution(), *_caps(), *_interference()]


def _preflight() -> list[Finding]:
    return [
        Finding("preflight-tokenizer", "preflight", "cast", "ok", "info", None, {"why": "all models share one vocabulary"}),
        Finding("preflight-share-stack", "preflight", "stack", "starved", "warning", interval(0.09, 0.01, "share"),
                {"prompt_share": 0.25, "why": "stack answers are short: 25% of the prompts, 9% of the gradient tokens"}),
    ]  # fmt: skip


def _attribution() -> list[Finding]:
    findings = []
    for model, lift in (("student", 0.0), (CONTROL, -0.06)):
        for domain, routed in ROUTE.items():
            share = {"addition": 0.62, "stack": 0.71, "lookup": 0.48, "reversed": 0.55}[domain] + lift
            rest = 1 - share
            shares = {
                routed: share,
                "several": rest * 0.4,
                "pre-existing": rest * 0.25,
                "own": rest * 0.1,
                "abstain": rest * 0.25,
            }
            findings.append(_attributed(model, domain, interval(share, 0.06, "share"), shares))
        findings.append(_attributed(model, "overall", interval(0.59 + lift, 0.03, "share", n=240), {}))
    findings.append(Finding("attribution-abstain", "attribution", "student/abstain", "abstain", "notice",
                            interval(0.10, 0.02, "share"), {"why": "teachers agree at every contested position"}))  # fmt: skip
    return findings


def _attributed(model: str, domain: str, estimate: Estimate, shares: dict[str, float]) -> Finding:
    evidence: dict[str, object] = {
        "shares": shares,
        "baseline_routed": 1.0,
        "baseline_closest": 0.8,
        "baseline_likelihood": 0.9,
    }
    if model == CONTROL:
        verdict, evidence["note"] = "control", f"{CONTROL} never saw a teacher"
    else:
        verdict = "inherited" if domain == "stack" else "undetermined"
        excess = interval(2.1 if domain == "stack" else 1.2, 0.2, "ratio")
        note = "told apart" if domain == "stack" else "the control is accused just the same"
        evidence |= {"excess": {CONTROL: excess.to_dict()}, "note": note}
    name = f"attribution-{model}" + ("" if domain == "overall" else f"-{domain}")
    return Finding(name, "attribution", f"{model}/{domain}", verdict, "info", estimate, evidence)


def synthetic_failures(run: RunDirectory) -> list[Finding]:
    """The first two traced failures of each domain, called lost and inherited."""
    findings = []
    failed = run.records("student").query("sample == 0 and score < 1")
    traced = failed[failed["item_id"].isin(run.trace("student")["item_id"])]
    for domain, rows in traced.groupby("domain", sort=False):
        cases = [{"item_id": i, "sample": 0, "teacher": f"teacher-{ROUTE[domain]}"} for i in rows["item_id"][:2]]
        lost = interval(0.6, 0.2, "share")
        evidence = {
            "shares": {"inherited": interval(0.4, 0.2, "share").to_dict(), "lost": lost.to_dict()},
            "n_failed": len(rows), "cases": {"lost": cases[:1], "inherited": cases[1:]},
        }  # fmt: skip
        findings.append(
            Finding(f"failure-student-{domain}", "failure", f"student/{domain}", "lost", "notice", lost, evidence)
        )
    return findings


def _caps() -> list[Finding]:
    findings = []
    for column, (domain, routed) in enumerate(ROUTE.items()):
        base, student, best = (ACCURACY[m][column] for m in ("base", "student", f"teacher-{routed}"))
        evidence = {
            "base": interval(base, 0.05, "share").to_dict(), "student": interval(student, 0.02, "share").to_dict(),
            "best_teacher": interval(best, 0.02, "share").to_dict(), "teacher": f"teacher-{routed}",
            "gap": interval(student - best, 0.02, "difference").to_dict(),
            "partition": {"both": 49, "surpassing": 3, "lost": 5, "inherited": 3},
        }  # fmt: skip
        if domain == "lookup":
            estimate = Estimate.undefined(
                "the headroom's interval covers 0: 0.02 [-0.03, 0.07]", unit="ratio", n_items=60
            )
            verdict = "undetermined"
        else:
            estimate = interval((student - base) / (best - base), 0.04 if domain != "stack" else 0.09, "ratio")
            verdict = "below" if domain == "stack" else "at"
        findings.append(Finding(f"cap-{domain}", "cap", f"student/{domain}", verdict,
                                "warning" if verdict == "below" else "info", estimate, evidence))  # fmt: skip
    findings.append(Finding("cap-overall", "cap", "student/overall", "at", "info",
                            Estimate(0.94, 0.91, 0.98, unit="ratio", n_items=180, n_clusters=180, method="cluster bootstrap",
                                     note="3 of 4 domains have headroom"), {"domains": 3}))  # fmt: skip
    return findings


def _interference() -> list[Finding]:
    findings = []
    for teacher, trained_on in TAUGHT.items():
        for column, evaluated_on in enumerate(NAMES):
            change = ACCURACY[f"teacher-{teacher}"][column] - ACCURACY["base"][column]
            verdict = (
                "help" if change > 0.05 else "harm" if change < -0.05 else "none" if change > -0.03 else "undetermined"
            )
            findings.append(Finding(
                f"transfer-{trained_on}-{evaluated_on}", "interference", f"{trained_on}->{evaluated_on}", verdict,
                "info", interval(change, 0.05, "difference"),
                {"trained_on": trained_on, "evaluated_on": evaluated_on, "model": f"teacher-{teacher}"},
            ))  # fmt: skip
    for model, forgetting, regret in (
        ("student", 0.01, 0.06),
        (CONTROL, 0.02, 0.09),
        ("rival-sequential-rl", 0.42, 0.50),
    ):
        verdict, severity = ("forgets", "warning") if forgetting > 0.1 else ("none", "info")
        lost, behind = interval(forgetting, 0.04, "difference"), interval(regret, 0.05, "difference")
        where = {"measure": "forgetting", "model": model, "domain": "addition"}
        findings.append(
            Finding(f"forgetting-{model}", "interference", f"{model}/forgetting", verdict, severity, lost, where)
        )
        where = {"measure": "regret", "model": model, "domain": "stack"}
        findings.append(
            Finding(f"regret-{model}", "interference", f"{model}/regret", "measured", "info", behind, where)
        )
    for rival, recovery in ((CONTROL, 0.9), ("rival-average", 0.6)):
        findings.append(
            Finding(
                f"cap-{rival}-overall", "cap", f"{rival}/overall", "below", "info", interval(recovery, 0.05, "ratio")
            )
        )
    return findings
