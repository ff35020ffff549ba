"""Batched scoring under many models against one plain forward pass an answer."""

from __future__ import annotations

import pytest
import torch
from tiny import decoder, shifted

from mopd_diag.engines import scoring
from mopd_diag.engines.rollouts import by_size
from mopd_diag.engines.sampling import sample
from mopd_diag.engines.scoring import score
from mopd_diag.training.distill import reverse_kl

VOCABULARY, EOS = 12, 1


def cast():
    base = decoder(std=0.3, vocab_size=VOCABULARY)
    return {name: shifted(base, i, 0.1) for i, name in enumerate(("student", "one", "two"))} | {"base": base}


@pytest.mark.parametrize("tokens", [30, 4096])
def test_scores_equal_plain_forward_passes(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models = cast()
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 11]] * 9
    generator = torch.Generator().manual_seed(0)
    rollouts = sample(
        models["student"], prompts, eos_id=EOS, pad_id=0, max_new_tokens=[1 + i % 9 for i in range(27)],
        generator=generator, turn_id=5, reply=lambda row, transcript: [2, 2],
    )  # fmt: skip
    assert rollouts.sampled_tokens < int((rollouts.length_N - rollouts.prompt_N).sum())
    monkeypatch.setattr(scoring, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 50 * VOCABULARY)
    scored = score(rollouts, models, "student", ["one", "two"])
    evidence = scored.evidence
    assert evidence.members == ("student", "base", "one", "two")

    logp, kl, token, answer, position, own = [], [], [], [], [], []
    for row, (ids, start) in enumerate(zip(rollouts.responses(), rollouts.prompt_N.tolist(), strict=True)):
        text = torch.tensor([[*prompts[row], *ids]])
        with torch.no_grad():
            each = [torch.log_softmax(models[m](text)[0, start - 1 : -1], -1) for m in evidence.members]
        logp.append(torch.stack([e.gather(1, torch.tensor(ids)[:, None]).squeeze(1) for e in each], 1))
        kl.append(torch.stack([reverse_kl(each[0], e) for e in each], 1))
        token += ids
        answer += [row] * len(ids)
        position += range(len(ids))
        own += rollouts.own_NL[row, start : start + len(ids)].tolist()
    torch.testing.assert_close(torch.tensor(evidence.logp_TM), torch.cat(logp), atol=2e-5, rtol=1e-4, check_dtype=False)
    torch.testing.assert_close(torch.tensor(evidence.kl_TM), torch.cat(kl), atol=2e-5, rtol=1e-3, check_dtype=False)
    assert scored.token_T.tolist() == token
    assert evidence.answer_T.tolist() == answer
    assert evidence.position_T.tolist() == position
    assert evidence.own_T.tolist() == own
    assert scored.tokens_scored == 4 * len(token)


def test_by_size_keeps_order_and_bounds() -> None:
    lengths = sorted(5 + i % 13 for i in range(100))
    parts = list(by_size(range(100), lengths, 200))
    assert [row for part in parts for row in part] == list(range(100))
    assert all(len(part) * lengths[part[-1]] <= 200 for part in parts)
    assert all(len(part) % 16 == 0 for part in parts[:-1] if len(part) > 16)
    assert [len(part) for part in by_size(range(3), [50, 60, 70], 10)] == [1, 1, 1]  # a row is never cut
