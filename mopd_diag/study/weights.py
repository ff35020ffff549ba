"""The models of a run on disk: whole checkpoints, or adapters on a whole one, and the tokenizer that all of them share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from mopd_diag.config import PPOStage, RewardModelStage, Stage
from mopd_diag.models.checkpoint import base_folder, load_decoder, save_adapted, save_checkpoint
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.device import pick
from mopd_diag.models.loading import adapters_on_one_base
from mopd_diag.models.lora import Adapted, Adapter, LowRank, is_adapter, load_adapter
from mopd_diag.models.scalar import ScalarDecoder, save_scalar
from mopd_diag.models.tokenizer import Tokenizer, character_tokenizer, load_tokenizer
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.seeds import seed_of
from mopd_diag.study.preflight import asked_device
from mopd_diag.study.resolve import Study
from mopd_diag.training.held import Held, HeldAdapter


def run_tokenizer(run: RunDirectory, study: Study, *models: str) -> Tokenizer:
    """The tokenizer that all models of a run share: beside each of them where a checkpoint brought it, else the characters'."""
    if study.plan.model.path is None:
        return character_tokenizer()
    return load_tokenizer(run.path / "models" / models[0])


def device_of(study: Study) -> torch.device:
    """Where this process computes for a study. Raises BadInput when the plan asks for a device that is not here."""
    return pick(asked_device(study.plan.compute.device, study.plan.model.path))


def load_model(run: RunDirectory, study: Study, name: str) -> Decoder:
    """A model of a run, on the device."""
    return load_decoder(run.path / "models" / name, device=device_of(study))


def members_of(run: RunDirectory, study: Study, names: Iterable[str]) -> Mapping[str, Any]:
    """Models of a run by name, on the device, to be scored; adapters share their base in memory."""
    folders = {name: run.path / "models" / name for name in names}
    shared = adapters_on_one_base(folders, device=device_of(study))
    return {name: shared[name].model if name in shared else load_model(run, study, name) for name in folders}


def hold(run: RunDirectory, study: Study, stage: Stage, model: Decoder, mesh: Any) -> Held:
    """What of a model a stage trains: all of it, an adapter on it, or its pieces over the processes of a mesh.

    With `[model] lora`, a stage that starts from a whole model gets a fresh adapter, and one that starts from an adapter goes on with
    it. Models with a head of their own (reward models, PPO) and the first model of a run are trained whole.
    """
    compute, lora = study.plan.compute, study.plan.model.lora
    model.recompute = compute.recompute
    if mesh is not None:
        from mopd_diag.training.sharded import HeldShards

        held: Held = HeldShards(model, mesh)
    elif lora is None or stage.start is None or isinstance(stage, RewardModelStage | PPOStage):
        held = Held(model)
    else:
        begun = run.path / "models" / stage.start
        if is_adapter(begun):
            model, adapter = load_decoder(base_folder(begun), device=model.device), load_adapter(begun)
            model.recompute = compute.recompute
        else:
            generator = torch.Generator().manual_seed(seed_of(study.plan.seed, stage.name, "adapter"))
            adapter = Adapter.fresh(model, LowRank(lora.rank, lora.alpha, lora.targets), generator)
        held = HeldAdapter(Adapted(model, adapter))
    held.precision = compute.precision
    return held


def keep(run: RunDirectory, stage: Stage, held: Held, tokenizer: Tokenizer) -> None:
    """Save what a stage made; an adapter beside the whole model that it changes."""
    folder, model = run.path / "models" / stage.name, held.model
    if isinstance(held, HeldAdapter):
        begun = run.path / "models" / str(stage.start)
        save_adapted(held.adapted.adapter, tokenizer, folder, base_folder(begun) if is_adapter(begun) else begun)
    elif isinstance(stage, RewardModelStage) and isinstance(model, ScalarDecoder):
        save_scalar(model, tokenizer, folder)
    else:  # a value head is no part of the policy
        save_checkpoint(model, tokenizer, folder)
