"""The small server with the rest of OpenAI's completions: texts, and `echo` with `logprobs`. Shared by the tests of evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from small_server import SmallServer

from mopd_diag.engines.sampling import sample


@dataclass
class Completions(SmallServer):
    """What lm-eval's `local-completions` asks for. `echoes`: whether it gives a prompt's log-probabilities."""

    echoes: bool = True

    def complete(self, document: dict[str, Any]) -> dict[str, Any]:
        if "prompt_logprobs" in document:
            return super().complete(document)
        if document.get("echo"):
            return {"choices": [{"index": 0, "text": "", "logprobs": self.scores(document["prompt"])}]}
        return {"choices": [{"index": 0, "text": self.written(document)}]}

    def scores(self, ids: list[int]) -> dict[str, Any]:
        with torch.inference_mode():
            logp_LV = torch.log_softmax(self.model(torch.tensor([ids]))[0].float(), -1)
        ids = [*ids, int(logp_LV[-1].argmax())]  # one token is written, too
        logp, best = logp_LV[range(len(logp_LV)), ids[1:]].tolist(), logp_LV.max(-1)
        tops = [{self.text(int(i)): v} for i, v in zip(best.indices, best.values.tolist(), strict=True)]
        whole = {"tokens": [self.text(i) for i in ids], "token_logprobs": [None, *logp], "top_logprobs": [None, *tops]}
        return whole if self.echoes else {k: v[-1:] for k, v in whole.items()}

    def written(self, document: dict[str, Any]) -> str:
        drawn = sample(
            self.model, [document["prompt"]], eos_id=self.tokenizer.eos_id, pad_id=self.tokenizer.pad_id,
            max_new_tokens=document["max_tokens"], temperature=document["temperature"],
            generator=torch.Generator().manual_seed(document["seed"]),
        )  # fmt: skip
        text = self.tokenizer.decode(drawn.responses()[0])
        return text[: min((text.find(s) for s in document["stop"] if s in text), default=len(text))]
