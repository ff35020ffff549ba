"""Plain files, frames and our own runs as record sets, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_run import write_synthetic_run

from mopd_diag.errors import BadInput
from mopd_diag.records.read import from_frame, read_records
from mopd_diag.records.recordset import COLUMNS, aligned

REAL = Path(__file__).parents[1] / "reports" / "data" / "dn_mopd"


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("table", "scores"),
    [
        ({"score": 0.25}, [0.25]),
        ({"score": True}, [1.0]),
        ({"scores": [1, 0, 0.5]}, [1.0, 0.0, 0.5]),
        ({"correct": "0110"}, [0.0, 1.0, 1.0, 0.0]),
        ({"correct": False}, [0.0]),
        ({"correct": "01", "score": 0.5}, [0.0, 1.0]),
    ],
)
def test_each_way_to_write_a_score(tmp_path: Path, table: dict, scores: list[float]) -> None:
    frame = read_records(write(tmp_path / "a.jsonl", {"id": 7, **table})).frame
    assert tuple(frame.columns) == COLUMNS
    assert frame["score"].tolist() == scores
    assert frame["sample"].tolist() == list(range(len(scores)))
    assert set(frame["item_id"]) == {"7"}


def test_optional_fields_are_kept_and_sorted_by_group_item_and_sample(tmp_path: Path) -> None:
    lines = [
        {"id": "b", "domain": "math", "score": 1, "sample": 1, "prompt": "p", "response": "r1", "prompt_hash": "h", "seed": 3},
        {"id": "b", "domain": "math", "score": 0, "sample": 0, "prompt": "p", "response": "r0", "prompt_hash": "h", "seed": 3},
        {"id": "a", "domain": "code", "score": 0.5, "prompt": [{"role": "user", "content": "q"}], "target_hash": "t"},
    ]  # fmt: skip
    frame = read_records(write(tmp_path / "a.jsonl", *lines)).frame
    assert frame["group"].tolist() == ["code", "math", "math"]
    assert frame["response"].tolist() == ["", "r0", "r1"]
    assert frame["cluster"].tolist() == ["", "3", "3"]
    assert frame["target_hash"].tolist() == ["t", "", ""]
    assert frame["prompt"][0] == '[{"role": "user", "content": "q"}]'


def test_a_directory_is_one_group_a_file_and_other_files_are_no_records(tmp_path: Path) -> None:
    for suite in ("aime25", "aime26"):
        write(tmp_path / f"{suite}.jsonl", {"id": "0", "correct": "01"})
    write(tmp_path / "README.md", "words")
    records = read_records(tmp_path)
    assert records.groups == ["aime25", "aime26"] and records.named
    assert records.name == tmp_path.name


def test_the_published_records_have_two_suites_of_30_questions_and_64_answers() -> None:
    models = sorted(p for p in REAL.iterdir() if p.is_dir())
    assert len(models) == 9
    for model in models:
        counts = read_records(model).frame.groupby("group")["item_id"].agg(["nunique", "size"])
        assert counts.loc["aime25"].tolist() == counts.loc["aime26"].tolist() == [30, 30 * 64]


def test_a_run_directory_gives_one_model_by_domain_with_its_hashes(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run", items=5, samples=2)
    ours = run.records("student")
    for path in (run.path, run.path / "records", run.record_path("student")):
        records = read_records(path)
        assert records.groups == sorted(ours["domain"].unique())
        assert len(records.frame) == len(ours)
        merged = records.frame.merge(
            ours, left_on=["group", "item_id", "sample"], right_on=["domain", "item_id", "sample"]
        )
        assert (merged["score_x"] == merged["score_y"]).all() and (
            merged["prompt_hash_x"] == merged["prompt_hash_y"]
        ).all()
    assert read_records(run.path, model="base").frame["score"].mean() == run.records("base")["score"].mean()
    with pytest.raises(BadInput, match="no records of 'studnt'; did you mean 'student'"):
        read_records(run.path, model="studnt")


def test_a_parquet_file_with_several_models_gives_the_one_asked_for(tmp_path: Path) -> None:
    frame = pd.DataFrame({"model": ["base", "student"], "item_id": ["x", "x"], "score": [0.0, 1.0]})
    frame.to_parquet(tmp_path / "all.parquet")
    assert read_records(tmp_path / "all.parquet").frame["score"].tolist() == [1.0]
    with pytest.raises(BadInput, match="no records of 'rival'; valid: base, student"):
        read_records(tmp_path / "all.parquet", model="rival")


def test_a_frame_needs_only_ids_and_scores(tmp_path: Path) -> None:
    records = from_frame(pd.DataFrame({"item_id": [3, 1], "score": [True, False]}), "before")
    assert records.frame["item_id"].tolist() == ["1", "3"] and records.frame["score"].tolist() == [0.0, 1.0]
    assert records.groups == ["all"] and not records.named
    full = pd.DataFrame(
        {"item_id": ["a", "a"], "score": [0.5, 1], "domain": "math", "sample": [0, 1], "prompt_hash": "h"}
    )
    assert from_frame(full).groups == ["math"]
    with pytest.raises(BadInput, match="no column 'score'; did you mean 'scores'"):
        from_frame(pd.DataFrame({"item_id": [1], "scores": [1]}))


def test_another_field_can_be_the_score(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": 1, "score": 0, "reward": [0.5, 1.5]})
    assert read_records(path, metric="reward").frame["score"].tolist() == [0.5, 1.5]
    with pytest.raises(BadInput, match="a.jsonl:1: no `rewrd`; did you mean 'reward'"):
        read_records(path, metric="rewrd")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": 1, "score": 1}', '{"id": 2, "score"'], "a.jsonl:2: not JSON"),
        (['{"id": 1, "score": 1}', "[1, 2]"], "a.jsonl:2: got a list"),
        (['{"id": 1, "score": 1}', "", '{"id": 2, "score": NaN}'], "a.jsonl:3: score is nan"),
        (['{"id": 1, "score": Infinity}'], "a.jsonl:1: score is inf"),
        (['{"id": 1, "score": null}'], "a.jsonl:1: score is None, expected a number"),
        (['{"id": 1, "score": "0.5"}'], "a.jsonl:1: score is '0.5', expected a number"),
        (['{"id": 1, "score": 1%s}' % ("0" * 400)], "a.jsonl:1: score is inf"),
        (['{"id": 1, "score": 1, "sample": 1%s}' % ("0" * 40)], "a.jsonl:1: sample is 10000"),
        (["[" * 100_000], "is one JSON array"),
        (['{"id": 1, "score": 1, "prompt": ' + "[" * 100_000], "a.jsonl:1: not JSON"),
        (['{"id": 1, "scores": []}'], "a.jsonl:1: `scores` is"),
        (['{"id": 1, "correct": "01x"}'], "a.jsonl:1: `correct` is '01x'"),
        (['{"id": 1, "correct": "01", "score": 0.9}'], "a.jsonl:1: `score` is 0.9, but `correct` has mean 0.5"),
        (['{"score": 1}'], "a.jsonl:1: no `id`.*never the row's position"),
        (['{"id": "", "score": 1}'], "a.jsonl:1: the item_id is empty"),
        (['{"id": [1], "score": 1}'], "a.jsonl:1: `id` is .*expected text"),
        (['{"id": 1, "scor": 1}'], "a.jsonl:1: no score; expected .*did you mean 'scor'"),
        (['{"id": 1, "score": 1, "sample": 0.5}'], "a.jsonl:1: sample is 0.5, expected a whole number"),
        (['{"id": 1, "scores": [1, 0], "sample": 0}'], "a.jsonl:1: `sample` numbers one answer"),
        (['{"id": 1, "score": 1}', '{"id": 1, "score": 1}'], "a.jsonl:2: item '1', sample 0, came before at .*a.jsonl:1 with the same"),
        (['{"id": 1, "score": 1}', '{"id": "1", "score": 0}'], "a.jsonl:2: item '1', sample 0, came before at .* with another score"),
        (
            ['{"id": 1, "score": 1, "sample": 0, "prompt_hash": "a"}', '{"id": 1, "score": 1, "sample": 1, "prompt_hash": "b"}'],
            "a.jsonl:2: item '1' has samples with different prompts",
        ),
        (["", "  "], "is empty"),
        (['[{"id": 1, "score": 1}]'], "is one JSON array; expected one object a line"),
        (["words and words"], "a.jsonl:1: not JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line_with_its_place(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        read_records(write(tmp_path / "a.jsonl", *lines))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_the_line_is_right_far_down_a_file_and_for_bad_encoding(tmp_path: Path) -> None:
    good = [json.dumps({"id": i, "score": 1}) for i in range(12_345)]
    with pytest.raises(BadInput, match="a.jsonl:12346: not JSON"):
        read_records(write(tmp_path / "a.jsonl", *good, "{"))
    (tmp_path / "b.jsonl").write_bytes(b'{"id": 1, "score": 1}\n{"id": "\xff", "score": 1}\n')
    with pytest.raises(BadInput, match="b.jsonl:2: not UTF-8 text"):
        read_records(tmp_path / "b.jsonl")


def test_a_log_cut_off_in_mid_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "score": 1}\n{"id": 2, "sco')
    with pytest.raises(BadInput, match="a.jsonl:2: .*was the run cut off"):
        read_records(tmp_path / "a.jsonl")


def test_an_archive_of_something_else_is_no_log(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(BadInput, match="is a zip archive but not a log of inspect_ai"):
        read_records(tmp_path / "a.npz")


@pytest.mark.parametrize("head", [b"", b"PAR1", b"PK\x03\x04", b'{"version": 2, "status": "success", '])
def test_random_bytes_are_refused_whatever_they_start_like(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "noise"
    path.write_bytes(head + bytes(np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)))
    with pytest.raises(BadInput) as error:
        read_records(path)
    assert "noise" in str(error.value) and "\n" not in str(error.value)


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    for path, message in (
        ("empty.jsonl", "is empty"),
        ("folder", "holds no records"),
        ("gone", "no file or directory"),
    ):
        with pytest.raises(BadInput, match=message):
            read_records(tmp_path / path)
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "manifest.json", {"schema": 1})
    with pytest.raises(BadInput, match="a run without records"):
        read_records(tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": 1, "score": 1})
    path.chmod(0)
    with pytest.raises(BadInput, match="cannot read .*Permission denied"):
        read_records(path)


def test_hostile_texts_survive_unchanged(tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>", "\u202eevil\u202c \u2028 \x07\x00", "x" * 10_000, "\U0001f600"]
    path = write(
        tmp_path / "a.jsonl", *({"id": i, "score": 1, "prompt": t, "response": t} for i, t in enumerate(texts))
    )
    frame = read_records(path).frame
    assert frame["prompt"].tolist() == frame["response"].tolist() == texts


def test_a_lone_surrogate_is_replaced_not_fatal(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1, "score": 1, "response": "half \\ud83d"}')
    assert read_records(path).frame["response"].tolist() == ["half ?"]


def test_unequal_samples_and_mixed_scales_are_warned_of(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"id": 1, "domain": "a", "scores": [1, 0]}, {"id": 2, "domain": "a", "scores": [1]},
        {"id": 1, "domain": "b", "score": 87}, {"id": 2, "domain": "b", "score": 0.5},
    )  # fmt: skip
    assert read_records(path).warnings == (
        "a: items have 1 to 2 samples; each item counts once, by its mean",
        "groups are on different scales: a up to 1, b up to 87; `overall` mixes them",
        "b: scores between 0 and 1 stand beside scores up to 87; are two scales mixed?",
    )


def test_single_files_are_aligned_to_one_group_unless_their_records_name_two() -> None:
    frame = pd.DataFrame({"item_id": ["a"], "score": [1.0]})
    plain, math, code = (
        from_frame(frame),
        from_frame(frame.assign(domain="math")),
        from_frame(frame.assign(domain="code")),
    )
    assert [s.groups for s in aligned(plain, math)[0]] == [["math"], ["math"]]
    assert [s.groups for s in aligned(math, code)[0]] == [["math"], ["code"]]
