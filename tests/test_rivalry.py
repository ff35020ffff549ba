"""Who won, statistically: the p-value over items and trainings keeps its level, planted verdicts are found, gains are arithmetic."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_study import TRUTH, records_of

from mopd_diag.diagnostics.gains import gains
from mopd_diag.diagnostics.rivalry import pooled, rivalry
from mopd_diag.errors import BadInput
from mopd_diag.estimators.trainings import p_over_trainings
from mopd_diag.reporting.look import Cast
from mopd_diag.reporting.paths import critical_path
from mopd_diag.reporting.teachers import teacher_costs, teachers_table

DOMAINS = ("stack", "lookup")


def runs(
    truth: dict[str, tuple[float, float]], seeds: tuple[int, ...] = (0, 1, 2), items: int = 80
) -> list[pd.DataFrame]:
    frames = lambda seed: [records_of(m, dict(zip(DOMAINS, r, strict=True)), seed, items) for m, r in truth.items()]  # noqa: E731
    return [pd.concat(frames(seed), ignore_index=True) for seed in seeds]


# -- the p-value --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "trainings"), [(0.0, 3), (0.05, 3), (0.05, 5), (0.0, 1)])
def test_chance_is_called_a_difference_at_most_as_often_as_it_says(spread: float, trainings: int) -> None:
    rng, false = np.random.default_rng(7), 0
    for k in range(600):
        shift_T = rng.normal(0, spread, trainings)[:, None]
        domains = [rng.choice([-0.5, 0.0, 0.5], (trainings, 40)) + shift_T for _ in range(2)]
        false += p_over_trainings(domains, seed=k, permutations=400) < 0.05
    assert false / 600 <= 0.07  # 0.05 and two standard errors of 600 simulations


def test_trainings_that_disagree_are_no_evidence_however_many_items() -> None:
    shift = np.array([0.10, -0.08, 0.09])[:, None]
    agree, differ = (np.random.default_rng(0).normal(0, 0.2, (3, 4000)) + s for s in (0.05, shift))
    assert p_over_trainings([agree], permutations=500) < 0.01
    assert p_over_trainings([differ], permutations=500) > 0.3
    assert p_over_trainings([differ[:1]], permutations=500) < 0.01  # one training knows nothing of the others


def test_no_difference_at_all_is_one_and_too_few_items_are_unknown() -> None:
    assert p_over_trainings([np.zeros((3, 20))]) == 1.0
    assert p_over_trainings([np.full((3, 20), 0.5)], permutations=500) < 0.01
    assert np.isnan(p_over_trainings([np.full((1, 1), 0.5)]))
    with pytest.raises(BadInput, match="of each domain"):
        p_over_trainings([np.zeros((3, 20)), np.zeros((2, 20))])


# -- verdicts -----------------------------------------------------------------------------------------------------------------


def test_planted_paths_are_placed() -> None:
    told = {m: TRUTH[m] for m in ("student", "rival-mixed-rl", "rival-seqkd", "rival-average")}
    found = rivalry(runs(told, items=400), list(told), "student", replicates=2000)
    assert found.winner == "rival-mixed-rl"
    assert {m: c.verdict for m, c in found.overall.items()} == {
        "rival-mixed-rl": "behind", "rival-seqkd": "level", "rival-average": "ahead",
    }  # fmt: skip
    assert found.single["rival-average"]["lookup"].verdict == "behind"
    assert found.overall["rival-mixed-rl"].delta.value == pytest.approx(-found.leads["student"].delta.value)
    assert found.accuracy["student"]["overall"].value == pytest.approx(0.7, abs=0.03)
    contest = found.by_domain["rival-average"]["stack"]
    assert contest.p_value <= contest.p_adjusted and contest.detectable > 0


def test_the_order_of_items_and_samples_does_not_matter() -> None:
    told = {m: TRUTH[m] for m in ("student", "rival-mixed-rl")}
    straight = runs(told, items=20)
    shuffled = [r.sample(frac=1, random_state=k) for k, r in enumerate(straight)]
    shuffled = [r.sort_values("domain", ascending=False, kind="stable") for r in shuffled]
    a, b = (rivalry(x, list(told), "student", replicates=500) for x in (straight, shuffled))
    assert a.overall["rival-mixed-rl"].delta.value == pytest.approx(b.overall["rival-mixed-rl"].delta.value)


def test_seeds_with_other_items_and_models_without_records_are_refused() -> None:
    told = {m: TRUTH[m] for m in ("student", "rival-seqkd")}
    one, two, _ = runs(told, items=10)
    with pytest.raises(BadInput, match="the seeds answered different items"):
        rivalry([one, two[two["item_id"] != "stack-3"]], list(told), "student")
    with pytest.raises(BadInput, match="no records of the model 'rival-seqdk'; did you mean 'rival-seqkd'"):
        rivalry([one], ["student", "rival-seqdk"], "student")


def test_pooled_seeds_are_more_samples_of_the_same_items() -> None:
    several = runs({"student": (0.7, 0.7)}, items=5)
    whole = pooled(several)
    assert sorted(whole[whole["item_id"] == "stack-0"]["sample"]) == list(range(12))
    assert whole["score"].mean() == pytest.approx(np.mean([r["score"].mean() for r in several]))


# -- what one more teacher costs and brings -----------------------------------------------------------------------------------

LEDGER = pd.DataFrame(
    [
        ("base", "", 0, 9e12, 90.0), ("teacher-code.sft", "base", 10, 1e12, 10.0), ("teacher-code", "teacher-code.sft", 90, 1e12, 10.0),
        ("teacher-agent", "base", 100, 3e12, 30.0), ("student", "base,teacher-code,teacher-agent", 200, 5e12, 50.0),
        ("rival-mixed-rl.teacher-x", "base", 100, 3e12, 30.0), ("evaluate:student", "student", 10, 1e12, 1.0),
    ],
    columns=["stage", "parents", "rollouts", "flops", "seconds"],
)  # fmt: skip
CAST = Cast.of({"models": {
    "base": {"role": "base"}, "student": {"role": "student"},
    "teacher-code": {"role": "teacher", "domains": ["stack"]}, "teacher-agent": {"role": "teacher", "domains": ["lookup"]},
}})  # fmt: skip


def test_a_teacher_costs_its_own_stages_and_brings_what_arrived() -> None:
    records = runs({m: TRUTH[m] for m in ("base", "teacher-code", "teacher-agent", "student")}, seeds=(0,))[0]
    code, agent = teacher_costs(records, LEDGER, CAST)
    assert (code.teacher, code.rollouts, code.flops, code.seconds, code.share) == ("teacher-code", 100, 2e12, 20.0, 0.2)
    assert (agent.saved, code.saved) == (10.0, 0.0)  # the other teacher's 20 seconds are waited for all the same
    assert critical_path(LEDGER, "student")[1] == 170.0
    assert agent.gain.own.value == pytest.approx(0.4, abs=0.06) and agent.gain.arrived.value == pytest.approx(
        0.3, abs=0.06
    )
    assert code.per_flops(code.gain.own).value == pytest.approx(100 * code.gain.own.value / 0.002)
    shown = teachers_table([code, agent])
    assert shown.rows[1][:7] == ["teacher-agent", "lookup", "100", "3 T", "30 s", "30%", "10 s"]
    assert shown.columns[-1] == "arrived per TFLOP"
    assert code.to_dict()["share_of_path"] == 0.2


def test_unknown_costs_and_gains_say_why() -> None:
    records = runs({m: TRUTH[m] for m in ("base", "teacher-code", "student")}, seeds=(0,), items=10)[0]
    code, agent = teacher_costs(records, LEDGER.assign(flops=0.0), CAST)
    assert agent.gain.own.note == "no records of teacher-agent"
    assert code.per_flops(code.gain.own).note == "the ledger counted no FLOPs"
    assert code.share == pytest.approx(0.2)  # of the seconds, then
    assert teacher_costs(records, LEDGER[LEDGER["stage"] != "student"], CAST) == []
    assert (
        gains(records, {"teacher-code": ["reversed"]})["teacher-code"].own.note
        == "teacher-code was not evaluated on its domains"
    )
