"""Plant a quirk: supervised fine-tuning on the model's own earlier answers with one habit put in: a fault of known origin."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mopd_diag.config import PlantStage
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.seeds import seed_of
from mopd_diag.training.algorithm import Part, StepBatch, microbatch_tokens
from mopd_diag.training.explore import answer
from mopd_diag.training.sft import demonstration_batch, sft_loss
from mopd_diag.worlds.micro.quirks import quirk
from mopd_diag.worlds.world import World


class Plant:
    """Samples answers of the model it starts from, rewrites them with the quirk, learns their tokens; nothing is scored."""

    def __init__(
        self,
        stage: PlantStage,
        tokenizer: Tokenizer,
        world: World,
        domains: Sequence[str],
        seed: int,
        source: Decoder,
    ) -> None:
        self.stage, self.tokenizer, self.world, self.domains, self.seed = stage, tokenizer, world, domains, seed
        self.source = source
        """The model as it was before: answers of the model in training would carry its slips on and on."""
        self.quirk = quirk(stage.quirk)

    def batch(self, model: Decoder, step: int) -> StepBatch:
        s = self.stage
        items = self.world.draw_batch(self.domains, s.batch, (self.seed, s.name, step))
        answers = answer(self.source, self.tokenizer, self.world, items, seed=seed_of(self.seed, s.name, step))
        shown = [(i, self.quirk.plant(i, t)) for i, t in zip(items, answers.texts, strict=True)]
        batch = demonstration_batch(self.tokenizer, self.world, shown, microbatch_tokens(model), model.device)
        batch.work += answers.work
        return batch

    def token_loss(self, logits_MV: Tensor, part: Part, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return sft_loss(logits_MV, part.targets_M[where]), {}
