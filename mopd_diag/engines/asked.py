"""What a server has answered in one task, one line an answer, so that a killed server or a killed process loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mopd_diag.errors import writing


class Asked:
    """Answers by key, in memory and as JSON lines at `path`. A last line that was cut by a crash is asked for again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Any] = {}
        whole = path.read_bytes() if path.is_file() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        for line in whole.splitlines():
            key, answer = json.loads(line)
            self._found[key] = answer
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                with path.open("r+b") as file:
                    file.truncate(len(whole))

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def put(self, key: str, answer: Any) -> None:
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, answer]) + "\n")
        self._found[key] = answer
