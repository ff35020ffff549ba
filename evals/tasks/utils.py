"""What the YAML files of these tasks refer to. The items and the verdicts are the package's own; nothing is downloaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from mopd_diag.worlds import documents


def dataset(
    world: str, domain: str, items: int = documents.ITEMS, examples: int = documents.EXAMPLES, **_: Any
) -> dict[str, datasets.Dataset]:
    """Held-out items as `test`, training items for few-shot prompts as `train`. lm-eval's `--metadata` may set `items`."""
    return {
        "test": datasets.Dataset.from_list(documents.held_out(world, domain, items)),
        "train": datasets.Dataset.from_list(documents.examples(world, domain, examples)),
    }


def every(answers: Sequence[list[str]], _docs: Sequence[Any]) -> list[list[str]]:
    """The filter that keeps all answers to an item; lm-eval's default keeps the first."""
    return [list(each) for each in answers]


def verdict(doc: dict[str, Any], results: Sequence[list[str]]) -> dict[str, Any]:
    """Mean score over the answers to one item and, of several answers, each score."""
    answers = [documents.transcript(doc, *parts) for parts in zip(*results, strict=True)]
    scores = [documents.score(doc, answer) for answer in answers]
    mean = sum(scores) / len(scores)
    return {"acc": mean, "scores": scores} if len(scores) > 1 else {"acc": mean}


def mean_of_all(scores: Sequence[list[float]]) -> float:
    flat = [s for each in scores for s in each]
    return sum(flat) / len(flat)


class TurnTask(ConfigurableTask):
    """A domain whose world replies in the middle of the answer: each item is two requests, see `documents`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={k: v for k, v in config.items() if k != "class"})

    def construct_requests(self, doc: dict, ctx: str | list[str], **kwargs: Any) -> list[Instance]:
        first = super().construct_requests(doc, ctx, **kwargs)
        assert isinstance(first, Instance) and isinstance(ctx, str)  # one context gives one request
        rest = (ctx + doc["opening"], first.arguments[1])
        return [first, dataclasses.replace(first, arguments=rest, idx=1, resps=[], filtered_resps={})]
