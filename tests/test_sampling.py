"""The sampler against its slow definitions: teacher forcing, `generate`, and the distribution itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny import SHAPES, TOKENIZER, decoder, in_transformers

from mopd_diag.engines import sampling
from mopd_diag.engines.rollouts import Rollouts, pack
from mopd_diag.engines.sampling import sample
from mopd_diag.engines.stepper import Stepper
from mopd_diag.models.decoder import Decoder

EOS, PAD, TURN = 1, 0, 5
VOCABULARY = 12

PROMPTS = {
    "equal lengths": [[3, 4, 6], [7, 8, 9], [3, 3, 3]],
    "mixed lengths": [[3], [4, 5, 6, 7, 8, 9, 10], [3, 4], [6, 7, 8]],
    "one row": [[3, 4, 5, 6]],
    "one token": [[3], [4]],
    "long": [[3 + i % 7 for i in range(80)], [4, 5]],  # beyond what batched products are used for
    "pad id inside": [[3, PAD, 4], [PAD, PAD, PAD, 3], [5]],  # padding is a place, not a token
}


def little(shape: str = "llama", seed: int = 0, **sizes) -> Decoder:
    return decoder(shape, seed, std=0.3, vocab_size=VOCABULARY, **sizes)


def draw(
    model: Decoder, prompts: list[list[int]], seed: int = 0, max_new_tokens: int | list[int] = 9, **options
) -> Rollouts:
    generator = torch.Generator().manual_seed(seed)
    return sample(model, prompts, eos_id=EOS, pad_id=PAD, max_new_tokens=max_new_tokens, generator=generator, **options)


def teacher_forced(model: Decoder, rollouts: Rollouts, temperature: float) -> torch.Tensor:
    """log π of every token given the ones before it, from one plain forward pass a row; position 0 is NaN."""
    logp_NL = torch.full(rollouts.ids_NL.shape, torch.nan)
    for row, length in enumerate(rollouts.length_N.tolist()):
        ids = rollouts.ids_NL[row, :length].clone()
        with torch.no_grad():
            logp_LV = torch.log_softmax(model(ids[None])[0] / temperature, -1)
        logp_NL[row, 1:length] = logp_LV[:-1].gather(1, ids[1:, None]).squeeze(1)
    return logp_NL


def assert_agrees(model: Decoder, rollouts: Rollouts, temperature: float = 1.0) -> None:
    own = rollouts.own_NL
    expected = teacher_forced(model, rollouts, temperature)
    torch.testing.assert_close(rollouts.logp_NL[own], expected[own], atol=2e-5, rtol=1e-5)
    assert float(expected[own].std()) > 1e-3  # not a comparison of constants
    assert bool((rollouts.logp_NL[~own] == 0).all())


def assert_well_formed(rollouts: Rollouts, prompts: list[list[int]], n: int, limits: list[int]) -> None:
    """Everything the docstring of `Rollouts` promises about the layout."""
    assert len(rollouts) == len(prompts) * n
    for row in range(len(rollouts)):
        prompt, limit = prompts[row // n], limits[row // n]
        start, end = int(rollouts.prompt_N[row]), int(rollouts.length_N[row])
        assert start == len(prompt)
        assert rollouts.ids_NL[row, :start].tolist() == prompt
        answer = rollouts.ids_NL[row, start:end].tolist()
        assert 1 <= len(answer) <= limit
        own = rollouts.own_NL[row, start:end].tolist()
        ends = [t == EOS and o for t, o in zip(answer, own, strict=True)]
        assert ends.index(True) == len(answer) - 1 if any(ends) else len(answer) == limit
        assert bool(rollouts.finished_N[row]) == any(ends)
        assert not rollouts.own_NL[row, :start].any() and not rollouts.own_NL[row, end:].any()
        assert (rollouts.ids_NL[row, end:] == PAD).all()
    assert rollouts.ids_NL.shape[1] == int(rollouts.length_N.max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("padding", PROMPTS)
def test_log_probabilities_equal_teacher_forcing(padding: str, temperature: float, shape: str) -> None:
    model = little(shape)
    for n in (1, 3):
        rollouts = draw(model, PROMPTS[padding] * 3, n=n, temperature=temperature)
        assert_well_formed(rollouts, PROMPTS[padding] * 3, n, [9] * 3 * len(PROMPTS[padding]))
        assert rollouts.own_NL.sum() == (rollouts.length_N - rollouts.prompt_N).sum() == rollouts.sampled_tokens
        assert_agrees(model, rollouts, temperature)


def test_rows_leave_when_they_end_and_nothing_changes_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = little()
    prompts = PROMPTS["mixed lengths"] * 4
    limits = [1 + 3 * (i % 5) for i in range(len(prompts))]
    widths: list[int] = []
    for name in ("read", "step"):
        run = getattr(Stepper, name)
        monkeypatch.setattr(Stepper, name, lambda s, ids, *a, run=run: widths.append(len(ids)) or run(s, ids, *a))
    rollouts = draw(model, prompts, max_new_tokens=limits, n=2)
    assert_well_formed(rollouts, prompts, 2, limits)
    assert_agrees(model, rollouts)
    answered = rollouts.length_N - rollouts.prompt_N
    # Step s + 1 reads exactly the rows that are not done after s + 1 tokens; the prompts were read once, not n times.
    assert widths == [len(prompts)] + [int((answered > s).sum()) for s in range(1, int(answered.max()))]
    assert widths[1] > widths[-1] > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_equals_generate(shape: str, tmp_path: Path) -> None:
    ours = decoder(shape, std=0.5)
    theirs = in_transformers(ours, tmp_path / "model")
    prompts = [TOKENIZER.encode(t) for t in ("M37+58:", "S1:", "a", "T(x)+1:", "}{")]
    got = sample(ours, prompts, eos_id=EOS, pad_id=PAD, max_new_tokens=20, temperature=0.0)
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = theirs.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=20)
    expected = [row[: row.index(EOS) + 1] if EOS in row else row for row in out[:, width:].tolist()]
    assert got.responses() == expected
    assert len({t for answer in expected for t in answer}) > 5
    assert_agrees(ours, got)  # log-probabilities at temperature 1


def test_greedy_does_not_depend_on_the_company() -> None:
    model = little(seed=3)
    prompts = PROMPTS["mixed lengths"]
    together = draw(model, prompts, temperature=0.0)
    for row, prompt in enumerate(prompts):
        alone = draw(model, [prompt], temperature=0.0)
        assert alone.responses()[0] == together.responses()[row]
        own = together.own_NL[row]
        torch.testing.assert_close(alone.logp_NL[0][alone.own_NL[0]], together.logp_NL[row][own], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_match_the_distribution(temperature: float) -> None:
    """Joint counts of the first two tokens against the product of the model's own conditionals."""
    model = decoder(std=0.35, vocab_size=6)
    prompt, n = [3, 4, 2], 40_000
    rollouts = draw(model, [prompt], max_new_tokens=2, n=n, temperature=temperature)
    counts = Counter(tuple(answer) for answer in rollouts.responses())
    with torch.no_grad():
        first = torch.softmax(model(torch.tensor([prompt]))[0, -1] / temperature, -1).tolist()
        then = [torch.softmax(model(torch.tensor([[*prompt, t]]))[0, -1] / temperature, -1).tolist() for t in range(6)]
    expected = {(EOS,): first[EOS]} | {(a, b): first[a] * then[a][b] for a in range(6) if a != EOS for b in range(6)}
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    assert set(counts) <= set(expected)
    seen = np.array([counts[k] for k in expected])
    wanted = np.array(list(expected.values())) * n
    common = wanted >= 5
    seen = np.append(seen[common], seen[~common].sum())
    wanted = np.append(wanted[common], wanted[~common].sum())
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    assert len(seen) > 12
    assert chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3


def test_impossible_tokens_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """At both ends of what a uniform draw can be."""
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for draw_, token in ((0.0, 1), (0.5 - 1e-9, 1), (0.5, 3), (1 - 2**-53, 3)):
        monkeypatch.setattr(torch, "rand", lambda *_, draw_=draw_, **__: torch.full((1, 1), draw_, dtype=torch.float64))
        chosen, logp = sampling._choose(logits, 1.0, torch.Generator())
        assert chosen.item() == token
        assert logp.item() == pytest.approx(np.log(0.5))


def test_equal_seeds_equal_tokens() -> None:
    model = little()
    one, two, other = (draw(model, PROMPTS["mixed lengths"] * 4, seed=s, n=2) for s in (7, 7, 8))
    for name in ("ids_NL", "prompt_N", "length_N", "own_NL", "logp_NL", "finished_N"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert one.responses() != other.responses()


def test_sampling_touches_no_global_randomness() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(little(), PROMPTS["mixed lengths"])
    assert torch.equal(torch.get_rng_state(), before)


# --- the world replies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("padding", ["equal lengths", "mixed lengths"])
def test_two_turns(padding: str, temperature: float) -> None:
    model = little(seed=2)
    prompts, n = PROMPTS[padding] * 8, 2
    asked: dict[int, list[tuple[int, ...]]] = {}

    def reply(row: int, transcript: list[int]) -> list[int] | None:
        assert transcript[-1] == TURN
        asked.setdefault(row, []).append(tuple(transcript))
        # Two tokens, one of which is the turn token and one the end of sequence: from the world they mean nothing.
        return [TURN, EOS, 2 + row % 3] if row % 2 == 0 else None

    rollouts = draw(model, prompts, n=n, temperature=temperature, turn_id=TURN, reply=reply, max_new_tokens=10)
    assert_well_formed(rollouts, prompts, n, [10] * len(prompts))
    assert_agrees(model, rollouts, temperature)
    replied = 0
    for row, answer in enumerate(rollouts.responses()):
        start = int(rollouts.prompt_N[row])
        own = rollouts.own_NL[row, start : start + len(answer)].tolist()
        expected = [True] * len(answer)
        turns = [len(t) for t in asked.get(row, [])]
        for t in turns:
            assert tuple(answer[:t]) in asked[row]
            if row % 2 == 0:
                world = [TURN, EOS, 2 + row % 3][: len(answer) - t]  # cut where the answer's limit cuts it
                assert answer[t : t + len(world)] == world
                expected[t : t + len(world)] = [False] * len(world)
                replied += bool(world)
        assert own == expected, (row, answer)
        # Asked at each turn token the model chose, and at no other.
        assert turns == [
            i + 1 for i, (token, mine) in enumerate(zip(answer, own, strict=True)) if token == TURN and mine
        ]
    assert replied > 5
    assert rollouts.sampled_tokens < int((rollouts.length_N - rollouts.prompt_N).sum())


def test_many_rows_are_sampled_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of different widths, a world that must hear the right row, and greedy answers that do not change."""
    model = little(seed=2)
    prompts = [p for p in PROMPTS["mixed lengths"] for _ in range(3)]
    greedy = draw(model, prompts, temperature=0.0, n=2).responses()
    monkeypatch.setattr(sampling, "CACHE_BYTES", 60_000)
    assert 1 < sampling._at_once(model, len(prompts), 2, 16) < len(prompts) / 2
    assert draw(model, prompts, temperature=0.0, n=2).responses() == greedy
    rows = []
    rollouts = draw(model, prompts, n=2, turn_id=TURN, reply=lambda row, transcript: rows.append((row, transcript)))
    assert_well_formed(rollouts, prompts, 2, [9] * len(prompts))
    assert_agrees(model, rollouts)
    answers = rollouts.responses()
    assert len(rows) > 5
    assert all(answers[row][: len(transcript)] == transcript for row, transcript in rows)


def test_no_reply_is_the_same_as_no_world() -> None:
    model = little(seed=2)
    plain = draw(model, PROMPTS["mixed lengths"] * 4)
    silent = draw(model, PROMPTS["mixed lengths"] * 4, turn_id=TURN, reply=lambda row, transcript: None)
    assert torch.equal(plain.ids_NL, silent.ids_NL) and torch.equal(plain.own_NL, silent.own_NL)


# --- edges ---------------------------------------------------------------------------------------------------------


def test_sampling_past_the_rotary_table_leaves_the_model_trainable() -> None:
    model = little(max_position_embeddings=4)
    rollouts = draw(model, PROMPTS["mixed lengths"])
    assert rollouts.ids_NL.shape[1] > 4
    model(rollouts.ids_NL).sum().backward()
    assert model.embed.grad is not None


def test_rollouts_can_be_trained_on() -> None:
    """They are made in inference mode; using them in a loss must not be an error."""
    model = little()
    rollouts = draw(model, PROMPTS["mixed lengths"])
    weight = torch.ones(rollouts.logp_NL.shape, requires_grad=True)
    (weight * rollouts.logp_NL).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        ([[3], []], {}),
        ([], {}),
        ([[3]], {"temperature": -1.0}),
        ([[3]], {"generator": None}),
    ],
)
def test_errors(prompts: list[list[int]], options: dict) -> None:
    given = {"generator": torch.Generator().manual_seed(0)} | options
    with pytest.raises(ValueError, match="prompt|temperature"):
        sample(little(), prompts, eos_id=EOS, pad_id=PAD, max_new_tokens=4, **given)


def test_pack_and_take() -> None:
    packed = pack([[3, 4], [5]], [[6, EOS], [7, 8, 9, EOS]], PAD)
    assert packed.ids_NL.tolist() == [[3, 4, 6, EOS, PAD], [5, 7, 8, 9, EOS]]
    assert packed.own_NL.tolist() == [[False, False, True, True, False], [False, True, True, True, True]]
    assert packed.responses() == [[6, EOS], [7, 8, 9, EOS]]
    assert bool(packed.logp_NL.isnan().all())
    first = packed.take(torch.tensor([0]))
    assert first.ids_NL.tolist() == [[3, 4, 6, EOS]]
    assert first.responses() == [[6, EOS]]
