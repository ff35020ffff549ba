"""Run under a Python that has vLLM: MOPD steps whose answers vLLM samples; prints one line of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from mopd_diag.config import MOPDStage
from mopd_diag.engines.likelihood import answer_logp
from mopd_diag.engines.vllm_sampler import VLLMSampler, sampled_by
from mopd_diag.models.checkpoint import load_decoder
from mopd_diag.models.tokenizer import character_tokenizer
from mopd_diag.training.distill import MOPD
from mopd_diag.training.loop import Schedule, train
from mopd_diag.worlds import load_world

GAPS: list[float] = []


class Watched(VLLMSampler):
    """Compares what vLLM says with the trainer's weights of this very step."""

    def sample(self, model, *arguments, **options):
        drawn = super().sample(model, *arguments, **options)
        GAPS.append(float((torch.cat(answer_logp(drawn, model)) - drawn.logp_NL[drawn.own_NL]).abs().max()))
        return drawn


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    student, teacher = (load_decoder(folder / name) for name in ("student", "teacher"))
    before = student.layers[0].qkv.detach().clone()
    world = load_world("micro", ["addition", "stack"])
    stage = MOPDStage(
        name="student",
        teachers={"addition": "teacher", "stack": "teacher"},
        prompts=8,
        group=2,
        learning_rate=1e-2,
        form="sampled",
    )
    algorithm = MOPD(stage, character_tokenizer(), world, ["addition", "stack"], 0, {"teacher": teacher})
    with sampled_by(Watched(64, "float32")):
        state = train(student, algorithm, Schedule(4, 1e-2))
    moved = float((student.layers[0].qkv.detach() - before).abs().max())
    losses = [row["loss"] for row in state.log]
    weights = [[row["importance_weight"], row["weight_dropped"]] for row in state.log]
    print(
        "REPORT "
        + json.dumps(
            {"gaps": GAPS, "losses": losses, "moved": moved, "tokens": state.work.tokens_sampled, "weights": weights}
        )
    )
