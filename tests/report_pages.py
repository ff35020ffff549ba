"""What the report's tests share: a page taken apart, and a run in which everything a model or a user wrote is hostile."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from synthetic_run import replace_findings, write_synthetic_run

from mopd_diag.runs.directory import RunDirectory, write_json, write_table

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=alert(1)>\u202e\x07|`]( javascript:alert(1))\u2028"
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes, text and whether the tags close in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self.open: list[str] = []
        self.headings: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes out of order at {self.getpos()}"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts[self.open[-1]] = self.scripts.get(self.open[-1], "") + data
        else:
            self.words.append(data)
            if self.open and re.fullmatch("h[1-6]", self.open[-1]):
                self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, tag: str, name: str) -> list[str]:
        return [v for t, n, v in self.attributes if t == tag and n == name]


def outside_code(source: str) -> str:
    """Markdown without its code spans."""
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", source)


def hostile_run(folder: Path) -> RunDirectory:
    """A run in which every string that a model or a user could have written is hostile."""
    run = write_synthetic_run(folder, items=12)
    for model in ("student", "base"):
        frame = run.records(model)
        frame["response"] = HOSTILE + frame["response"]
        frame["prompt"] = HOSTILE + frame["prompt"]
        write_table(run.record_path(model), frame)
    trace = run.trace("student")
    trace["token"] = [HOSTILE, "\u202e", "\n", "", "\u0301", "😀"] * (len(trace) // 6) + ["x"] * (len(trace) % 6)
    write_table(run.trace_path("student"), trace)
    manifest = run.manifest()
    manifest["plan"]["name"] = manifest["plan"]["summary"] = HOSTILE
    manifest["plan"]["world"]["domains"].append(HOSTILE)
    manifest["hardware"]["cpu"] = HOSTILE
    write_json(run.path / "manifest.json", manifest)
    change = {
        "subject": "student/" + HOSTILE,
        "verdict": HOSTILE,
        "id": HOSTILE,
        "evidence": {HOSTILE: [HOSTILE], "why": HOSTILE},
    }
    replace_findings(
        run,
        {
            "cap-stack": change,
            "transfer-stack-addition": {"evidence": {"trained_on": HOSTILE, "evaluated_on": HOSTILE}},
        },
    )
    return run
