"""Records of other tools: the fixtures were written by the tools themselves, but for verl and NeMo-RL (see their README)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from mopd_diag.diagnostics.join import join
from mopd_diag.errors import BadInput
from mopd_diag.records.read import read_records

FIXTURES = Path(__file__).parent / "fixtures" / "records"
LM_EVAL = FIXTURES / "lm_eval"


# -- lm-eval --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "task", "name"),
    [
        (None, "digits", "exact_match,strict-match"),
        ("flexible-extract", "digits", "exact_match,flexible-extract"),
        ("exact_match,flexible-extract", "digits", "exact_match,flexible-extract"),
        (None, "largest", "acc,none"),
        ("acc_norm", "largest", "acc_norm,none"),
    ],
)
def test_lm_evals_own_averages_come_back(metric: str | None, task: str, name: str) -> None:
    for side in ("before", "after"):
        (results,) = (LM_EVAL / side).glob("results_*.json")
        published = json.loads(results.read_text())["results"][task][name]
        frame = read_records(LM_EVAL / side, metric=metric).frame
        assert frame.loc[frame["group"] == task, "score"].mean() == pytest.approx(published)


def test_lm_eval_choices_are_told_and_perplexity_is_left_out() -> None:
    records = read_records(LM_EVAL / "before")
    assert records.format == "lm-eval" and records.groups == ["digits", "largest"] and records.name == "before"
    assert records.warnings == (
        "digits: scored by filter 'strict-match' of strict-match, flexible-extract",
        "flow is left out: it has no score for single items",
        "largest: scored by metric 'acc' of acc, acc_norm",
    )
    told = read_records(LM_EVAL / "before", metric="acc_norm").warnings
    assert "digits has no 'acc_norm'" in told[0] and "its default is taken" in told[0]
    with pytest.raises(
        BadInput, match="digits has no 'acc_nrm': its metrics are exact_match, its filters strict-match, flex"
    ):
        read_records(LM_EVAL / "before", metric="acc_nrm")


def test_lm_eval_items_carry_question_answer_and_hashes() -> None:
    joined = join(read_records(LM_EVAL / "before"), read_records(LM_EVAL / "after"))
    assert joined.verified and len(joined.items) == 40 + 15
    pick = joined.items[joined.items["group"] == "largest"].iloc[0]
    assert pick["prompt"].startswith("Largest of") and "(2)" in pick["prompt"]
    assert pick["response_before"].strip().isdigit()


def test_lm_eval_with_other_choices_is_another_question(tmp_path: Path) -> None:
    """lm-eval's prompt hash covers the context only; the choices of a multiple-choice item are checked too."""
    folder = shutil.copytree(LM_EVAL / "before", tmp_path / "after")
    (samples,) = folder.glob("samples_largest_*")
    lines = samples.read_text().splitlines()
    first = json.loads(lines[0])
    first["arguments"]["gen_args_0"]["arg_1"] = " 1000"
    samples.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    with pytest.raises(BadInput, match="prompts differ for 1 of 55 items with the same id, first '0' in largest"):
        join(read_records(LM_EVAL / "before"), read_records(folder))


def test_lm_eval_files_one_by_one_and_several_runs(tmp_path: Path) -> None:
    (samples,) = (LM_EVAL / "before").glob("samples_digits_*")
    assert read_records(samples).groups == ["digits"]
    folder = shutil.copytree(LM_EVAL / "before", tmp_path / "twice")
    newer = folder / "samples_digits_2099-01-01T00-00-00.000000.jsonl"
    newer.write_text(samples.read_text().splitlines()[0] + "\n")
    records = read_records(folder)
    assert (records.frame["group"] == "digits").sum() == 1
    assert f"digits: several runs in {folder}, the latest is taken ({newer.name})" in records.warnings


def test_lm_eval_without_samples_or_with_several_models_says_what_to_do(tmp_path: Path) -> None:
    (results,) = (LM_EVAL / "before").glob("results_*.json")
    shutil.copy(results, tmp_path)
    for path in (tmp_path, results):
        with pytest.raises(BadInput, match="--log_samples"):
            read_records(path)
    with pytest.raises(BadInput, match=r"several models \(after, before\); give one"):
        read_records(LM_EVAL)
    (flow,) = (LM_EVAL / "before").glob("samples_flow_*")
    with pytest.raises(BadInput, match="flow is left out: it has no score for single items"):
        read_records(flow)


def test_an_older_log_without_hashes_or_metric_names_is_joined_unverified_by_prompt(tmp_path: Path) -> None:
    (samples,) = (LM_EVAL / "before").glob("samples_largest_*")
    tables = [json.loads(line) for line in samples.read_text().splitlines()]
    for table in tables:
        for key in ("metrics", "filter", "doc_hash", "prompt_hash", "target_hash"):
            del table[key]
        table["arguments"] = [list(a.values()) for a in table["arguments"].values()]
    old = tmp_path / "old.jsonl"
    old.write_text("".join(json.dumps(t) + "\n" for t in tables))
    records = read_records(old)
    assert records.frame["score"].mean() == read_records(samples).frame["score"].mean()
    assert join(records, read_records(samples)).verified  # by the texts of the prompts


# -- inspect_ai -----------------------------------------------------------------------------------------------------------


def test_inspect_epochs_are_samples_and_the_task_is_the_group() -> None:
    before, after = (read_records(FIXTURES / "inspect" / f"{side}.eval") for side in ("before", "after"))
    assert before.format == "inspect" and before.groups == ["sums"]
    assert before.warnings == ("sums: scored by 'match' of match, includes",)
    joined = join(before, after)
    assert joined.verified and (joined.items["n_after"] == 2).all()
    scores = joined.items.set_index("item_id")[["before", "after"]]
    assert scores["before"].to_dict() == {
        "sum-12-5": 1,
        "sum-2-3": 1,
        "sum-20-22": 1,
        "sum-4-9": 0,
        "sum-6-6": 1,
        "sum-7-8": 1,
    }
    assert scores["after"].to_dict() == {
        "sum-12-5": 0,
        "sum-2-3": 1,
        "sum-20-22": 1,
        "sum-4-9": 1,
        "sum-6-6": 0.5,
        "sum-7-8": 0,
    }
    long = joined.items.set_index("item_id").loc["sum-20-22"]
    assert long["prompt"].endswith("Take your time.") and long["response_before"] == "The sum is 42"


def test_an_inspect_json_log_says_the_same_as_its_eval_twin() -> None:
    whole = read_records(FIXTURES / "inspect" / "after.eval").frame
    part = read_records(FIXTURES / "inspect" / "after.json").frame
    merged = part.merge(whole, on=["group", "item_id", "sample"], how="left")
    assert len(part) == 6
    for column in ("score", "prompt_hash", "target_hash", "response"):
        assert (merged[f"{column}_x"] == merged[f"{column}_y"]).all()


def test_the_log_of_a_killed_inspect_run_is_usable_with_a_warning() -> None:
    records = read_records(FIXTURES / "inspect" / "killed.eval")
    assert len(records.frame) == 5
    assert "sums: the run ended with status 'started'; 5 scored answers of 12" in records.warnings


def test_an_inspect_scorer_can_be_chosen_and_a_cut_log_is_refused(tmp_path: Path) -> None:
    path = FIXTURES / "inspect" / "before.eval"
    assert read_records(path, metric="includes").warnings == ()
    with pytest.raises(BadInput, match="no score 'include'; did you mean 'includes'"):
        read_records(path, metric="include")
    for name in ("before.eval", "after.json"):
        cut = tmp_path / name
        content = (FIXTURES / "inspect" / name).read_bytes()
        cut.write_bytes(content[: len(content) // 2])
        with pytest.raises(BadInput, match="is not a log that inspect_ai can read") as error:
            read_records(cut)
        assert "\n" not in str(error.value)


def test_without_inspect_ai_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(BadInput, match=r"inspect_ai is not installed; pip install 'mopd-diag\[inspect\]'"):
        read_records(FIXTURES / "inspect" / "before.eval")


# -- rollout dumps --------------------------------------------------------------------------------------------------------


def test_verl_items_are_prompts_and_their_rollouts_samples() -> None:
    before, after = (read_records(FIXTURES / "verl" / f"{step}.jsonl") for step in (100, 200))
    assert before.format == "verl" and before.warnings == ("scored by `score`; the file has `acc` too",)
    joined = join(before, after)
    assert joined.verified and len(joined.items) == 4 and (joined.items["n_before"] == 2).all()
    assert sorted(joined.items["before"]) == [0, 1, 1, 1]
    accurate = [read_records(FIXTURES / "verl" / f"{step}.jsonl", metric="acc") for step in (100, 200)]
    assert sorted(join(*accurate).items["before"]) == [0.5, 1, 1, 1]


def test_a_changed_target_in_a_verl_dump_is_refused(tmp_path: Path) -> None:
    changed = tmp_path / "200.jsonl"
    changed.write_text((FIXTURES / "verl" / "200.jsonl").read_text().replace('"gts": "13"', '"gts": "14"'))
    with pytest.raises(BadInput, match="targets differ for 1 of 4 items"):
        join(read_records(FIXTURES / "verl" / "100.jsonl"), read_records(changed))


@pytest.mark.parametrize("name", ["verl", "nemo_rl"])
def test_a_directory_of_training_steps_is_no_set_of_suites(name: str) -> None:
    with pytest.raises(BadInput, match="training steps; give one of them"):
        read_records(FIXTURES / name)


def test_trl_completions_by_reward() -> None:
    path = FIXTURES / "trl" / "completions.parquet"
    table = pd.read_parquet(path)
    records = read_records(path)
    assert records.format == "trl" and records.warnings == ("scored by reward 'vowels' of vowels, short",)
    assert sorted(records.frame["score"]) == sorted(table["vowels"])
    assert sorted(records.frame["response"]) == sorted(table["completion"])
    assert records.frame["item_id"].nunique() == 4 and set(records.frame["sample"]) == {0, 1}
    short = read_records(path, metric="short")
    assert short.warnings == ("2 of 8 answers have no 'short' and are left out",) and len(short.frame) == 6
    with pytest.raises(BadInput, match="no reward 'advantage'"):
        read_records(path, metric="advantage")


def test_trl_conversations_become_texts(tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "What is 2 + 3?"}]
    answer = [{"role": "assistant", "content": "5"}]
    frame = pd.DataFrame({"step": [1], "prompt": [turn], "completion": [answer], "right": [1.0], "advantage": [0.0]})
    frame.to_parquet(tmp_path / "c.parquet")
    row = read_records(tmp_path / "c.parquet").frame.iloc[0]
    assert (row["prompt"], row["response"]) == ("What is 2 + 3?", "5")


def test_nemo_rl_validation_and_training_dumps_name_the_same_items() -> None:
    validation = [read_records(FIXTURES / "nemo_rl" / f"val_data_step{step}.jsonl") for step in (10, 20)]
    joined = join(*validation)
    assert validation[0].format == "nemo-rl" and joined.verified
    assert (joined.items["before"].sum(), joined.items["after"].sum()) == (3, 2)
    training = read_records(FIXTURES / "nemo_rl" / "train_data_step11.jsonl")
    assert set(training.frame["item_id"]) == set(validation[0].frame["item_id"])


def test_a_nemo_rl_dump_that_hides_where_the_answer_starts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train_data_step1.jsonl"
    path.write_text(json.dumps({"content": [["a", "b", "c"]], "rewards": [1.0], "idx": 0}) + "\n")
    with pytest.raises(BadInput, match="step1.jsonl:1: `content` does not tell the prompt from the answer"):
        read_records(path)
