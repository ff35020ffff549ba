"""Is the cap binding? Planted probes judged, and a probe of a real run: trained, gone on with, and mistaken by nobody for a rival."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from app_pages import open_page, serve_run, words
from planted import draw_scores, frame
from synthetic_run import write_synthetic_run

from mopd_diag.cli import main
from mopd_diag.config import Plan, parse
from mopd_diag.diagnostics.caps import caps
from mopd_diag.diagnostics.probe import COUNTED, ProbeReport, probe_report
from mopd_diag.diagnostics.study import caps_of, diagnose, probe_of
from mopd_diag.errors import BadInput, RunDirectoryError
from mopd_diag.estimators.binding import Compared, compare, judge
from mopd_diag.estimators.bootstrap import Bootstrap
from mopd_diag.estimators.caps import cap
from mopd_diag.estimators.statistics import item_means
from mopd_diag.reporting.report import write_report
from mopd_diag.runs.directory import PROBE, RunDirectory, write_table
from mopd_diag.study.probe import probe
from mopd_diag.study.resolve import Study, resolve
from mopd_diag.study.run import lock, run_study
from mopd_diag.types import Estimate

# -- the verdict --------------------------------------------------------------------------------------------------------------


def compared(accuracies: dict[str, float], seed: object, *, teachers: int = 1, items: int = 400) -> Compared:
    """Planted accuracies of `student`, `probe` and `teacher` (as many equal ones), with a base far below."""
    planted = {"base": 0.3, **{m: accuracies[m] for m in ("student", "probe")}}
    planted |= {f"teacher-{k}": accuracies["teacher"] for k in range(teachers)}
    s = draw_scores(planted, items, 4, seed)
    taught = [v for m, v in s.items() if m.startswith("teacher")]
    before, after = (cap(s[m], s["base"], taught, replicates=400).bootstrap for m in ("student", "probe"))
    gain = Bootstrap.of(np.column_stack([item_means(s["probe"]), item_means(s["student"])]), replicates=400)
    return compare([before], [after], [gain])


@pytest.mark.parametrize(
    ("student", "teacher", "probe_", "verdict"),
    [
        (0.70, 0.72, 0.85, ("binding", "bound")),
        (0.70, 0.70, 0.70, ("not-binding", "flat")),
        (0.85, 0.70, 0.95, ("not-binding", "past")),
        (0.50, 0.80, 0.65, ("undetermined", "unreached")),
        (0.70, 0.72, 0.55, ("undetermined", "fell")),
    ],
)
def test_planted_probes_get_their_verdict(student, teacher, probe_, verdict):
    x = compared({"student": student, "teacher": teacher, "probe": probe_}, [1, int(100 * probe_)])
    assert judge(x, x.p_value) == verdict
    assert abs(x.after.value - (probe_ - teacher)) < 0.04 and abs(x.gain.value - (probe_ - student)) < 0.04
    widest = max(e.high - e.low for e in (x.after, x.gain))
    assert x.smallest_detectable_effect == pytest.approx(0.715 * widest, rel=0.01)


def test_luck_of_the_best_of_twelve_binds_nothing():
    found = [
        compared({"student": 0.7, "teacher": 0.7, "probe": 0.7}, [2, k], teachers=12, items=150) for k in range(10)
    ]
    assert sum(judge(x, x.p_value)[0] == "binding" for x in found) == 0


def test_a_student_a_little_past_its_teacher_is_not_bound_by_it():
    """Probe and student are alike and both past the teacher: without asking for a gain, that would be a cap that binds."""
    found = [compared({"student": 0.73, "teacher": 0.70, "probe": 0.73}, [3, k]) for k in range(10)]
    assert max(x.after.low for x in found) > 0
    assert sum(judge(x, x.p_value)[0] == "binding" for x in found) == 0


def estimate(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half, unit="difference", n_items=100, n_clusters=100)


FLAT = Compared(estimate(0, 0.03), estimate(0, 0.03), estimate(0, 0.03), 0.9, 0.04)


def test_no_gain_tells_something_only_when_so_short_a_run_can_move_a_model():
    assert judge(FLAT, 0.9, moved=True) == ("not-binding", "flat")
    assert judge(FLAT, 0.9, moved=False) == ("undetermined", "short")
    assert judge(FLAT, 0.9, moved=False, full=True) == ("not-binding", "full")


def test_what_only_one_of_many_domains_shows_is_left_open():
    x = Compared(estimate(0, 0.03), estimate(0.06, 0.04), estimate(0.06, 0.04), 0.02, 0.06)
    assert judge(x, 0.02) == ("binding", "bound")
    assert judge(x, 0.08) == ("undetermined", "corrected")
    past = replace(x, before=estimate(0.03, 0.04), p_value=0.3)
    assert judge(past, 0.3) == ("undetermined", "level")


def test_too_few_items_are_unknown():
    one = Bootstrap.of([[1.0, 0.0, 1.0, 1.0]])
    x = compare([one], [one], [Bootstrap.of([[1.0, 0.0]])])
    assert np.isnan(x.p_value) and judge(x, x.p_value) == ("undetermined", "unknown")


# -- the report ---------------------------------------------------------------------------------------------------------------


def with_probe(run: RunDirectory, levels: dict[str, float], rollouts: int) -> ProbeReport:
    """A synthetic run that a probe of these accuracies was trained in. Raises nothing: the report is there."""
    student = run.records("student")
    rng = np.random.default_rng(5)
    scores = [float(rng.random() < levels[d]) for d in student["domain"]]
    write_table(run.record_path(PROBE), student.assign(model=PROBE, score=scores))
    write_table(run.path / "metrics" / f"{PROBE}.parquet", pd.DataFrame({"step": range(1, 31), "reward": 0.5}))
    ledger = run.ledger()
    row = ledger[ledger["stage"] == "student"].iloc[0].to_dict() | {"rollouts": rollouts, "parents": "student"}
    more = [row | {"stage": PROBE, "algorithm": "grpo"}, row | {"stage": f"evaluate:{PROBE}", "algorithm": "evaluate"}]
    write_table(run.path / "ledger.parquet", pd.concat([ledger, pd.DataFrame(more)], ignore_index=True))
    manifest = run.manifest()
    (run.path / "manifest.json").write_text(json.dumps(manifest | {"seeds": [7]}))
    teachers = {m: t["domains"] for m, t in manifest["models"].items() if t["role"] == "teacher"}
    found = probe_report(run, caps(run.records(), teachers), teachers)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[RunDirectory, ProbeReport]:
    run = write_synthetic_run(tmp_path_factory.mktemp("probe") / "run", items=60)
    levels = dict.fromkeys(run.manifest()["plan"]["world"]["domains"], 0.999)
    found = with_probe(run, levels, rollouts=30_000)
    run.write_findings([*run.findings(), *found.findings()])
    write_report(run)
    return run, found


def test_the_report_shows_the_probe_and_its_cost(shown):
    run, found = shown
    assert {b.verdict for b in found.domains.values()} & {"binding"}
    for document in ((run.path / "report.html").read_text(), (run.path / "report.md").read_text()):
        assert "Is the cap binding?" in document and "30 steps cost 30 k rollouts" in document
        for domain, b in found.domains.items():
            assert domain in document and b.why.split(",")[0] in document
    bound = next(d for d, b in found.domains.items() if b.verdict == "binding")
    assert f"the cap binds on {bound}" in (run.path / "report.md").read_text()


def test_the_probe_is_no_member_of_the_cast(shown):
    run, _ = shown
    assert PROBE not in set(run.records()["model"]) and PROBE in set(run.records(PROBE)["model"])
    rows = [line.split("|")[1].strip() for line in (run.path / "report.md").read_text().splitlines() if "|" in line]
    assert rows.count(PROBE) == 1  # in the ledger; no row of accuracies, no path, no rival


def test_p_values_are_corrected_over_domains(shown):
    _, found = shown
    p = sorted(b.compared.p_value for b in found.domains.values())
    adjusted = sorted(b.p_adjusted for b in found.domains.values())
    assert (
        adjusted[0] == pytest.approx(min(1, p[0] * len(p)))
        and found.overall.p_adjusted == found.overall.compared.p_value
    )


def test_a_short_probe_is_called_too_short(tmp_path):
    run = write_synthetic_run(tmp_path / "run", items=200)
    levels = run.records("student").groupby("domain")["score"].mean().to_dict()
    found = with_probe(run, {str(d): float(v) for d, v in levels.items()}, rollouts=64)
    flat = [b for b in found.domains.values() if b.compared.gain.low >= -0.05 and b.compared.gain.high <= 0.05]
    open_ = [b for b in flat if b.student is not None and b.student.low < 0.95]
    assert open_ and all(b.verdict == "undetermined" and "too short" in b.why for b in open_)


def test_a_run_without_a_probe_says_how_to_get_one(tmp_path):
    run = write_synthetic_run(tmp_path / "run", items=12)
    write_report(run)
    for name in ("report.html", "report.md"):
        assert "mopd-diag caps DIR --probe" in (run.path / name).read_text()


def test_the_page_of_the_app(tmp_path, monkeypatch):
    run = serve_run(tmp_path, items=40)
    page = open_page(tmp_path, "caps", monkeypatch, run="quickstart")
    assert not page.exception and "Not probed" in words(page)
    found = with_probe(run, dict.fromkeys(run.manifest()["plan"]["world"]["domains"], 0.999), rollouts=30_000)
    run.write_findings([*run.findings(), *found.findings()])
    page = open_page(tmp_path, "caps", monkeypatch, run="quickstart")
    assert not page.exception and "▲ binding" in words(page) and "Not probed" not in words(page)


# -- a real run ---------------------------------------------------------------------------------------------------------------

TOML = """
name = "tiny"
[world]
domains = ["stack", "brackets"]
[evaluation]
items = 16
samples = 2
[diagnosis]
attribution_items = 8
probe_steps = {probe}
[[stages]]
name = "base"
algorithm = "sft"
steps = 30
decay = 5
[[stages]]
name = "teacher-code"
algorithm = "grpo"
start = "base"
steps = 4
prompts = 8
learning_rate = 2e-4
[[stages]]
name = "student"
algorithm = "mopd"
start = "base"
steps = 3
prompts = 16
teachers = {{ stack = "teacher-code", brackets = "teacher-code" }}
"""


def tiny(probe_steps: int = 0) -> Study:
    return resolve(parse(Plan, tomllib.loads(TOML.format(probe=probe_steps)), "tiny"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return run_study(tiny(), tmp_path_factory.mktemp("runs") / "tiny", workers=1).path


@pytest.fixture(scope="module")
def run(bare) -> RunDirectory:
    return probe(bare, steps=2)


def stamps(run: RunDirectory, pattern: str) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in run.path.glob(pattern)}


def test_a_probe_leaves_model_records_ledger_and_findings(run):
    assert (run.path / "models" / PROBE / "model.safetensors").is_file()
    mine, theirs = run.records(PROBE), run.records("student")
    assert set(mine["item_id"]) == set(theirs["item_id"]) and len(mine) == len(theirs)
    ledger = run.ledger().set_index("stage")
    assert ledger.loc[PROBE, "rollouts"] == 2 * 8 * 8 and ledger.loc[PROBE, "parents"] == "student"
    assert ledger.loc[f"evaluate:{PROBE}", "rollouts"] == len(mine)
    stage = json.loads((run.path / "probe.json").read_text())["stage"]
    assert stage["learning_rate"] == 2e-4 and stage["start"] == "student"  # as the run's own specialists learned
    told = {f.subject: f for f in run.findings() if f.id.startswith("cap-binding-")}
    assert set(told) == {f"{PROBE}/{d}" for d in ("stack", "brackets", "overall")}
    assert "Is the cap binding?" in (run.path / "report.md").read_text()


def test_the_cost_is_the_ledgers_and_its_share_that_of_the_students_path(run):
    found = probe_of(run, caps_of(run))
    assert found is not None and found.steps == 2 and found.seed == 0
    ledger = run.ledger().set_index("stage")
    path = ledger.loc[["teacher-code", "student"]]
    for count in COUNTED:
        assert found.cost[count] == pytest.approx(float(ledger.loc[PROBE, count]))
        assert found.cost["share_of_students_path"][count] == pytest.approx(
            float(ledger.loc[PROBE, count]) / float(path[count].sum())
        )


def test_the_other_diagnoses_do_not_see_it(run):
    without = [f.to_dict() for f in diagnose(run) if not f.id.startswith("cap-binding-")]
    hidden = run.record_path(PROBE).rename(run.path / "away")
    try:
        assert [f.to_dict() for f in diagnose(run)] == without
    finally:
        hidden.rename(run.record_path(PROBE))


def test_the_run_is_still_done_and_keeps_the_probe(run):
    before = stamps(run, "models/*/model.safetensors") | stamps(run, "done/*.json")
    manifest = (run.path / "manifest.json").read_bytes()
    run_study(tiny(), run.path, workers=1)
    assert stamps(run, "models/*/model.safetensors") | stamps(run, "done/*.json") == before
    assert (run.path / "manifest.json").read_bytes() == manifest
    assert any(f.id == "cap-binding-overall" for f in run.findings())


def test_a_probe_that_is_there_is_not_trained_again_and_a_lost_part_is(run, capsys):
    before = stamps(run, f"models/{PROBE}/model.safetensors")
    records = run.records(PROBE)
    run.record_path(PROBE).unlink()
    with pytest.raises(SystemExit) as stop:
        main(["caps", str(run.path), "--probe", "--json"])
    said = capsys.readouterr()
    assert stop.value.code == 0 and "2 GRPO steps" in said.err and f"done evaluate-{PROBE}" in said.err
    assert f"done train-{PROBE}" not in said.err and stamps(run, f"models/{PROBE}/model.safetensors") == before
    pd.testing.assert_frame_equal(run.records(PROBE), records)
    document = json.loads(said.out)["probe"]
    assert document["steps"] == 2 and set(document["domains"]) == {"stack", "brackets"}
    assert {"verdict", "gap", "gain", "smallest_detectable_effect", "p_adjusted"} <= document["domains"]["stack"].keys()


def test_a_longer_probe_takes_its_place(run):
    before = (run.path / "models" / PROBE / "model.safetensors").read_bytes()
    probe(run.path, steps=3, seed=4)
    found = probe_of(run, caps_of(run))
    assert found is not None and (found.steps, found.seed) == (3, 4)
    assert (run.path / "models" / PROBE / "model.safetensors").read_bytes() != before
    assert (run.ledger()["stage"] == PROBE).sum() == 1


def test_a_plan_can_ask_for_it(tmp_path):
    run = run_study(tiny(probe_steps=2), tmp_path / "asked", workers=1)
    found = probe_of(run, caps_of(run))
    assert found is not None and found.steps == 2 and not (run.path / "probe.json").is_file()
    assert PROBE not in run.manifest()["models"]


# -- bad input ----------------------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_be_probed_is_refused(run, tmp_path):
    with pytest.raises(BadInput, match="a probe of 0 steps trains nothing"):
        probe(run.path, steps=0)
    with lock(run.path), pytest.raises(RunDirectoryError, match="in use"):
        probe(run.path, steps=2)
    mark = run.path / "done" / "evaluate-base.json"
    hidden = mark.rename(run.path / "mark")
    try:
        with pytest.raises(RunDirectoryError, match="not finished: 1 job missing, first evaluate-base"):
            probe(run.path, steps=2)
    finally:
        hidden.rename(mark)
    plan = {"name": "alone", "stages": [{"name": "base", "algorithm": "sft", "steps": 1}]}
    alone = resolve(parse(Plan, plan, "alone"))
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "identity": alone.identity()}))
    with pytest.raises(RunDirectoryError, match="has no student"):
        probe(tmp_path)
    with pytest.raises(BadInput, match="probe_steps 5 needs a student with teachers"):
        resolve(parse(Plan, plan | {"diagnosis": {"probe_steps": 5}}, "alone"))


@pytest.mark.parametrize("arguments", [["--steps", "5"], ["--seed", "1"], ["--probe", "--steps", "0"]], ids=" ".join)
def test_options_that_make_no_sense_are_one_line(bare, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(["caps", str(bare), *arguments])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and arguments[-2] in said


def test_records_of_other_items_are_refused():
    scores = draw_scores({"base": 0.4, "student": 0.7, PROBE: 0.7, "teacher": 0.7}, 20, 2, 0)
    records = frame({"stack": scores})
    odd = records[~((records["model"] == PROBE) & (records["item_id"] == "stack-3"))]
    with pytest.raises(BadInput, match="same items"):
        caps(odd, {"teacher": ["stack"]}, student=PROBE)
