"""One model over several processes: the same training as in one, and the same files."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TOKENIZER, decoder, shifted

from mopd_diag.config import MOPDStage, SFTStage
from mopd_diag.errors import BadInput, MopdDiagError
from mopd_diag.models.checkpoint import to_hf
from mopd_diag.training import loop
from mopd_diag.training.distill import MOPD
from mopd_diag.training.loop import Schedule, train
from mopd_diag.training.sft import SFT
from mopd_diag.training.sharded import HeldShards, over
from mopd_diag.worlds.world import load_world

SCHEDULE = Schedule(6, 3e-3, warmup=2, decay=2)
DOMAINS = ("addition", "stack")


def algorithm(name: str):
    world = load_world("micro")
    if name == "sft":
        return SFT(SFTStage(name="base", domains=DOMAINS, batch=9), TOKENIZER, world, DOMAINS, 0)
    stage = MOPDStage(
        name="student", start="base", domains=DOMAINS, prompts=12, form="full",
        teachers={"addition": "teacher-a", "stack": "teacher-b"},
    )  # fmt: skip
    teachers = {f"teacher-{x}": shifted(decoder(std=0.1), k, 0.1) for k, x in enumerate("ab", 1)}
    return MOPD(stage, TOKENIZER, world, DOMAINS, 0, teachers)


def learn(mesh, tell, name: str, folder: str, recompute: bool) -> None:
    """What each process does: train, and the first one tells."""
    model = decoder(std=0.1)
    model.recompute = recompute
    held = HeldShards(model, mesh)
    saved = Path(folder) / "saved.safetensors"
    loop.SAVE_EVERY_SECONDS = 0.0
    state = train(model, algorithm(name), SCHEDULE, held=held, saved=saved, progress=tell)
    with held.whole():
        if held.writes:
            save_file(to_hf(model), Path(folder) / "model.safetensors")
            (Path(folder) / "log.json").write_text(json.dumps(state.log))


@pytest.mark.parametrize(("name", "recompute"), [("sft", False), ("mopd", True)])
def test_two_processes_train_as_one_does(name: str, recompute: bool, tmp_path: Path):
    whole = decoder(std=0.1)
    expected = train(whole, algorithm(name), SCHEDULE)
    told: list[tuple[int, int]] = []
    over(2, learn, (name, str(tmp_path), recompute), progress=lambda step, steps, _: told.append((step, steps)))
    assert told[-1] == (6, 6) and told == sorted(told), "the first process says how far they are"
    log = json.loads((tmp_path / "log.json").read_text())
    assert len(log) == len(expected.log) == 6
    for ours, one in zip(log, expected.log, strict=True):
        assert ours.keys() == one.keys()
        assert ours["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert ours["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    found = load_file(tmp_path / "model.safetensors")
    start = to_hf(decoder(std=0.1))
    for key, weight in to_hf(whole).items():
        assert not torch.equal(weight, start[key])
        assert (found[key] - weight).abs().max() < 2e-4, key
    again = decoder(seed=5)  # one process goes on from what two have saved
    state = train(again, algorithm(name), SCHEDULE, saved=tmp_path / "saved.safetensors")
    assert state.step == 6
    assert all((to_hf(again)[k] - w).abs().max() < 2e-4 for k, w in to_hf(whole).items())


def fail(mesh, tell, text: str) -> None:
    raise BadInput(text)


def test_a_mistake_in_one_process_is_told_in_one_line():
    with pytest.raises(MopdDiagError, match="^no such thing; do that$"):
        over(2, fail, ("no such thing; do that",))


def test_what_progress_raises_stops_all_processes(tmp_path: Path):
    def stop(step: int, steps: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        over(2, learn, ("sft", str(tmp_path), False), progress=stop)
    assert not multiprocessing.active_children()


def test_gradient_checkpointing_changes_no_gradient():
    ids = torch.randint(4, 90, (2, 30), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        model = decoder("qwen3-grouped-untied")
        model.recompute = recompute
        model.hidden_at(ids, torch.tensor([3, 17, 40])).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(g is None or torch.equal(g, gradients[1][n]) for n, g in gradients[0].items())
