"""Training with weights, gradients and moments in pieces over several processes (torch FSDP2, after ZeRO-3, 1910.02054).

Every process draws the same batch and does its share of the microbatches, so a step is the step of one process, up to the order of
sums. On GPUs the processes talk through NCCL, on CPUs through Gloo.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch import multiprocessing as processes_of
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mopd_diag.errors import MopdDiagError, ResourceError
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.device import pick_mesh
from mopd_diag.runs.scheduler import telling
from mopd_diag.training.algorithm import Part
from mopd_diag.training.held import Agreed, Held
from mopd_diag.training.loop import Progress


class HeldShards(Held):
    """A model's weights in pieces, one a process of the mesh. All processes must begin with the same weights."""

    def __init__(self, model: Decoder, mesh: DeviceMesh) -> None:
        super().__init__(model)
        self.mesh, self.rank, self.size = mesh, mesh.get_rank(), mesh.size()
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
            register_fsdp_forward_method(layer, "pass_on")
        fully_shard(model, mesh=mesh)  # embedding, last norm and head, which the loss reads after the forward pass
        register_fsdp_forward_method(model, "hidden_at")
        self._pieces = [cast(FSDPModule, m) for m in (*model.layers, model)]
        for piece in self._pieces:
            piece.set_gradient_divide_factor(1.0)  # weights of a step's tokens sum to one over all processes already
            piece.set_force_sum_reduction_for_comms(True)  # Gloo can only sum

    @property
    def writes(self) -> bool:  # type: ignore[override]
        return self.rank == 0

    def mine(self, parts: Sequence[Part]) -> list[tuple[Part, bool]]:
        """Every `size`-th part. Processes must do equally many, so who has one fewer repeats the first, which does not count."""
        padded = -(-len(parts) // self.size) * self.size
        places = range(self.rank, padded, self.size)
        return [(parts[i], True) if i < len(parts) else (parts[0], False) for i in places]

    def together(self, numbers: Mapping[str, float]) -> dict[str, float]:
        each: list[dict[str, float]] = [{} for _ in range(self.size)]
        distributed.all_gather_object(each, dict(numbers))
        return {name: sum(e.get(name, 0.0) for e in each) for name in dict.fromkeys(n for e in each for n in e)}

    def agreed(self, said: Agreed) -> Agreed:
        each = [said]
        distributed.broadcast_object_list(each, 0)
        return each[0]

    @contextmanager
    def whole(self) -> Iterator[None]:
        for piece in self._pieces:
            piece.unshard()
            piece.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for piece in self._pieces:
                piece.reshard()
                piece.set_reshard_after_forward(piece is not self._pieces[-1], recurse=False)

    def clip(self, most: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), most, foreach=True)
        return float(self.gathered(norm))

    def gathered(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def placed(self, whole: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


def over(
    count: int, call: Callable[..., None], arguments: tuple[Any, ...], device: str = "auto", progress: Progress | None = None
) -> None:  # fmt: skip
    """Run `call(mesh, tell, *arguments)` in `count` processes that form a mesh; one a GPU where there are enough, else on CPUs.

    What the first process gives to `tell` reaches `progress` here; the others' `tell` is None. `call` must be importable by name;
    `member_device(mesh)` tells it where its model belongs. What the first process to fail raised is raised here: a mistake of the user's
    as it is, everything else as ResourceError. Raises BadInput where `device` asks for GPUs that are not there.
    """
    kind = pick_mesh(count, device)
    with tempfile.TemporaryDirectory(prefix="mopd-diag-mesh-") as folder:
        try:
            messages: Any = processes_of.get_context("spawn").SimpleQueue()
            members: Any = processes_of.spawn(  # type: ignore[attr-defined]
                _member, (count, kind, folder, messages, call, arguments), nprocs=count, join=False
            )
            try:
                while not members.join(timeout=0.2):
                    _pass_on(messages, progress)
                _pass_on(messages, progress)
            finally:  # what `progress` raises stops the training
                for process in members.processes:
                    process.kill()
                    process.join()
        except Exception as error:
            told = sorted(Path(folder).glob("error-*"))
            if told:
                raise MopdDiagError(told[0].read_text(encoding="utf-8")) from None
            raise ResourceError(f"a process of {count} that train one model together was lost: {error}") from error


def _pass_on(messages: Any, progress: Progress | None) -> None:
    while not messages.empty():
        _, *said = messages.get()
        if progress is not None:
            progress(*said)


def member_device(mesh: DeviceMesh) -> torch.device:
    """Where this process's model belongs: its own GPU, or the CPU."""
    return torch.device("cuda", mesh.get_rank()) if mesh.device_type == "cuda" else torch.device("cpu")


def _member(
    rank: int, count: int, kind: str, folder: str, messages: Any, call: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1 if kind == "cuda" else max(1, (os.cpu_count() or 1) // count))
    if kind == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
    )
    try:
        tell = telling("", messages.put) if rank == 0 else None
        call(init_device_mesh(kind, (count,)), tell, *arguments)
    except MopdDiagError as error:
        (Path(folder) / f"error-{rank}").write_text(str(error), encoding="utf-8")
        raise
    finally:
        distributed.destroy_process_group()
