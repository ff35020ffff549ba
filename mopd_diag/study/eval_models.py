"""How a member of a cast becomes a model that lm-eval can ask: its checkpoint on our engines, or its server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopd_diag.errors import BadInput, CheckpointError
from mopd_diag.study.eval_members import Member

if TYPE_CHECKING:
    from mopd_diag.models.tokenizer import Tokenizer

NEEDED = "lm-eval asks servers with {}, which is not installed here; install it: pip install 'mopd-diag[eval]'"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Opened:
    """`model(kept, seed, told)` is what lm-eval asks in one task, `kept` a file for a server's answers; `count` is tokens a text."""

    model: Callable[[Path, int, Progress], Any]
    count: Callable[[list[str]], list[int]]


@contextmanager
def opened(member: Member, rows: int | None, device: str) -> Iterator[Opened]:
    """Load a checkpoint, or connect to a server, for the tasks of one member. Raises BadInput when nothing can be asked of it."""
    if member.server is None:
        yield _here(member, rows, device)
        return
    from mopd_diag.engines.asked import Asked
    from mopd_diag.engines.harness import load_words
    from mopd_diag.engines.served_http import Client

    served_lm, tokenizer = _served_lm(), _tokenizer(member)
    words = load_words(member.path, member.base)
    with Client(member.server) as client:
        about = client.describe()

        def model(kept: Path, seed: int, told: Progress) -> Any:
            return served_lm(client, words, tokenizer.eos_id, about, Asked(kept), seed=seed, told=told)

        yield Opened(model, partial(_lengths, tokenizer))


def _here(member: Member, rows: int | None, device: str) -> Opened:
    import torch

    from mopd_diag.engines.harness import TorchLM, load_words
    from mopd_diag.models.device import pick
    from mopd_diag.models.loading import load

    try:
        loaded = load(member.path, member.base, pick(device))
    except CheckpointError as error:  # of a member's base, it would not say whose
        raise CheckpointError(f"{member.name}: {error}") from error
    ids = torch.tensor([[loaded.tokenizer.eos_id]], device=loaded.model.device)
    with torch.inference_mode():
        if not loaded.model.hidden(ids).isfinite().all():
            raise BadInput(
                f"{member.name} gives NaN or infinite numbers: nothing can be asked of it; repair {member.path}"
            )
    words = load_words(member.path, member.base)

    def model(_kept: Path, seed: int, told: Progress) -> Any:
        return TorchLM(loaded, words, rows=rows, seed=seed, told=told)

    return Opened(model, partial(_lengths, loaded.tokenizer))


def _lengths(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer.encode_all(texts)]


def check_servers(members: Sequence[Member], scored: bool) -> list[str]:
    """Ask every server what it serves and for a few log-probabilities, before anything is paid for; returns what to keep in mind.

    `scored`: whether a task needs log-likelihoods. Raises BadInput when a server cannot give them, or reads other tokens than the
    student; ServerError when it does not answer.
    """
    notes: list[str] = []
    served = [m for m in members if m.server is not None]
    if not served:
        return notes
    _served_lm()
    from mopd_diag.engines.harness_served import OtherTokens, check_scores
    from mopd_diag.engines.harness_text import DEFAULT_LENGTH
    from mopd_diag.engines.served_http import Client

    tokenizer = _tokenizer(served[0])
    for member in served:
        assert member.server is not None
        with Client(member.server) as client:
            context = client.describe().context
            if context is None:
                notes.append(
                    f"{member.name}: its server does not say how much it reads, {DEFAULT_LENGTH:,} tokens are assumed"
                )
            try:
                check_scores(client, tokenizer, context or DEFAULT_LENGTH)
            except OtherTokens:
                raise
            except BadInput as error:
                if scored:
                    raise
                notes.append(f"{error}; whether it has the student's tokens is not known")
    return notes


def _served_lm() -> Any:
    try:
        from mopd_diag.engines.harness_served import ServedLM
    except ModuleNotFoundError as error:
        raise BadInput(NEEDED.format(error.name)) from error
    return ServedLM


def _tokenizer(member: Member) -> Tokenizer:
    """The student's, without its weights where it has a file of its own."""
    from mopd_diag.models.loading import load
    from mopd_diag.models.tokenizer import load_tokenizer

    known = (member.path / "tokenizer.json").is_file()
    return load_tokenizer(member.path) if known else load(member.path, member.base).tokenizer
