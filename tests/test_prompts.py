"""The user's own prompts and answers: what is read, and what is refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mopd_diag.errors import BadInput
from mopd_diag.prompts import read_prompts


def test_reads_what_the_contract_allows(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        '{"id": 1, "prompt": "2+2:", "domain": "math", "answer": "4"}\n\n{"id": "b", "prompt": "x", "response": "", "score": 0}\n'
    )
    first, second = read_prompts(path, responses=False)
    assert (first.id, first.domain, first.answer, first.response) == ("1", "math", "4", None)
    assert (second.domain, second.response, second.score) == ("", "", 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ('{"id": "a", "prompt": "x"}\n{"id":', r":2: not JSON"),
        ('["a"]', "expected an object"),
        ('{"id": "a"}', "no 'prompt'"),
        ('{"id": "a", "prompt": ""}', "prompt is empty"),
        ('{"id": "a", "prompt": 3}', "expected text"),
        ('{"id": "a", "prompt": "x", "promt": "y"}', "unknown key 'promt'; did you mean 'prompt'"),
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', ":2: id 'a' came before"),
        ('{"id": "a", "prompt": "x", "score": "high"}', "expected a number"),
    ],
)
def test_refuses_with_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        read_prompts(path, responses=False)


def test_rollouts_need_responses(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "a", "prompt": "x"}')
    with pytest.raises(BadInput, match="no 'response'"):
        read_prompts(path, responses=True)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(BadInput, match="not a text file"):
        read_prompts(path, responses=False)
