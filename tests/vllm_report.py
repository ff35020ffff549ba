"""Run under a Python that has vLLM: `vllm_report.py FOLDER` compares the engine with ours on checkpoints and prints one line of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from mopd_diag.engines.likelihood import answer_logp
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.engines.vllm import VLLMEngine
from mopd_diag.errors import BadInput
from mopd_diag.models.checkpoint import load_decoder
from mopd_diag.models.decoder import Decoder


def scored(engine: VLLMEngine, model: Decoder, given: Rollouts) -> float:
    """The largest difference of log p(token), nats."""
    theirs = torch.from_numpy(engine.score(given, k=5).logp_TK[:, 0])
    return float((torch.cat(answer_logp(given, model)) - theirs).abs().max())


def sampled(engine: VLLMEngine, model: Decoder, prompts: list[list[int]], temperature: float) -> float:
    """The largest difference of log μ(token), nats."""
    drawn = engine.sample(
        prompts, eos_id=1, pad_id=0, max_new_tokens=12, temperature=temperature, seed=1
    )  # fmt: skip
    gaps = []
    for row, p, n in zip(range(len(drawn)), drawn.prompt_N.tolist(), drawn.length_N.tolist(), strict=True):
        ids = drawn.ids_NL[row, :n]
        with torch.inference_mode():
            logp = torch.log_softmax(model(ids[None])[0, p - 1 : -1] / temperature, -1)
        gaps.append((logp.gather(1, ids[p:, None])[:, 0] - drawn.logp_NL[row, p:n]).abs().max())
    return float(torch.stack(gaps).max())


def refused(call, *arguments) -> str:
    try:
        call(*arguments)
    except BadInput as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    engine = VLLMEngine(folder / "one", dtype="float32", eager=True, context=256)
    one, two = load_decoder(folder / "one"), load_decoder(folder / "two")
    long = torch.randint(3, 99, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [[5, 6, 7], [9, 10]] * 20 + [long] * 8
    ask = {"eos_id": 1, "pad_id": 0, "max_new_tokens": [30] * 47 + [4]}
    drawn, again, other = (engine.sample(prompts, **ask, seed=s) for s in (0, 0, 1))
    weights = engine.mismatch(drawn, one)
    answers = [[20, 21, 1], [], [30, 31]]
    report = {
        "repeats": drawn.responses() == again.responses() != other.responses(),
        "lengths": [len(a) for a in drawn.responses()],
        "finished": drawn.finished_N.tolist(),
        "ends": [a[-1] == 1 for a in drawn.responses()],
        "inner_end": any(1 in a[:-1] for a in drawn.responses()),
        "scored": scored(engine, one, drawn),
        "in_answers": scored(engine, one, pack([[5, 6]] * 4, [long] * 4, 0)),
        "hits": [o.num_cached_tokens for o in engine._read([[5, 6, *long]] * 2, 1, "hits", cached=True)],
        "few": scored(engine, one, pack([[5, 6, 7], [8, 9], [10]], answers, 0)),
        "cooler": sampled(engine, one, prompts[:8], 0.5),
        "mean": weights.mean,
        "largest": weights.largest,
        "outside": weights.outside,
        "effective": weights.effective,
        "k": refused(engine.score, drawn, 50),
        "long": refused(engine.score, pack([[5] * 200], [[6] * 56], 0)),
    }
    # The same answers to one long prompt before and after: nothing of the old weights may be read from the cache.
    same = pack([long] * 4, [[20, 21, 22, 1]] * 4, 0)
    greedy = {**ask, "temperature": 0.0, "max_new_tokens": 8}
    old, old_drawn = engine.score(same, k=5).logp_TK[:, 0], engine.sample([long] * 4, **greedy).responses()
    engine.reload(folder / "two")
    new, new_drawn = engine.score(same, k=5).logp_TK[:, 0], engine.sample([long] * 4, **greedy).responses()
    report["reloaded"] = scored(engine, two, drawn)
    report["reloaded_sampled"] = sampled(engine, two, prompts, 1.0)
    report["wrong"] = engine.mismatch(drawn, two).effective
    engine.close()
    fresh = VLLMEngine(folder / "two", dtype="float32", eager=True, context=256)
    report["moved"] = float(abs(new - old).max())
    report["stale"] = float(abs(new - fresh.score(same, k=5).logp_TK[:, 0]).max())
    report["stale_sampled"] = new_drawn != fresh.sample([long] * 4, **greedy).responses()
    report["moved_sampled"] = new_drawn != old_drawn
    fresh.close()
    report["closed"] = fresh.llm is None and engine.llm is None
    report["refused"] = refused(lambda: VLLMEngine(folder / "two", context=100_000))
    report["torn"] = [refused(fresh.reload, folder / "torn"), refused(lambda: VLLMEngine(folder / "torn", context=100))]
    report["none"] = refused(lambda: VLLMEngine(folder / "none", context=100))
    print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
