"""TIES merging: its three steps on small numbers, against a definition written out entry by entry, and on decoders."""

from __future__ import annotations

import pytest
import torch
from tiny import decoder, shifted
from torch import Tensor

from mopd_diag.models.decoder import Decoder
from mopd_diag.training.merge import average, task_arithmetic, ties, ties_shift


def flat(model: Decoder) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_trim_elect_average() -> None:
    shift_KP = torch.tensor(
        [
            [4.0, -3.0, 0.1, 2.0, -1.0, 0.0],
            [2.0, 5.0, 0.2, -6.0, -3.0, 0.1],
            [0.1, 1.0, 0.3, -2.0, -5.0, 0.2],
        ]
    )
    # Half of six entries stay in each: [4 -3 . 2 . .], [. 5 . -6 -3 .], [. 1 . -2 -5 .]. Signs: + + . - - .
    assert ties_shift(shift_KP, 0.5).tolist() == pytest.approx([4.0, 3.0, 0.0, -4.0, -4.0, 0.0])
    # Nothing trimmed: signs of the sums; means over those that agree only.
    assert ties_shift(shift_KP, 1.0).tolist() == pytest.approx([6.1 / 3, 3.0, 0.2, -4.0, -3.0, 0.15])
    assert ties_shift(torch.tensor([[1.0, -2.0], [-1.0, 2.0]]), 1.0).tolist() == [0.0, 0.0]  # a draw moves nothing


def written_out(shifts: list[list[float]], density: float) -> list[float]:
    size = len(shifts[0])
    kept = []
    for shift in shifts:
        order = sorted(range(size), key=lambda p: -abs(shift[p]))[: max(1, round(density * size))]
        kept.append([shift[p] if p in order else 0.0 for p in range(size)])
    merged = []
    for p in range(size):
        sign = 1.0 if sum(k[p] for k in kept) > 0 else -1.0
        agreeing = [k[p] for k in kept if k[p] * sign > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@pytest.mark.parametrize("density", [0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("models", [2, 3, 12])
def test_against_the_definition_written_out(models: int, density: float) -> None:
    shift_KP = torch.randn(models, 97, generator=torch.Generator().manual_seed(models), dtype=torch.float64)
    assert ties_shift(shift_KP, density).tolist() == pytest.approx(written_out(shift_KP.tolist(), density), abs=1e-12)


def test_on_decoders() -> None:
    base = decoder("qwen3-grouped-untied")
    models = [shifted(base, seed, 0.1) for seed in (1, 2, 3)]
    expected = (flat(base) + 0.7 * ties_shift(torch.stack([flat(m) - flat(base) for m in models]), 0.2)).float()
    merged = ties(base, models, 0.7, 0.2)
    torch.testing.assert_close(flat(merged), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(flat(ties(base, models[::-1], 0.7, 0.2)), flat(merged))  # the order of the models says nothing
    assert merged(torch.tensor([[3, 4, 5]])).isfinite().all()


def test_trimming_is_over_all_parameters_of_a_model() -> None:
    """One matrix moved far, the others little: only that one's shift is kept."""
    base = decoder()
    moved = shifted(base, 1, 1e-3)
    with torch.no_grad():
        moved.embed.add_(1.0)
    merged = ties(base, [moved, moved], 1.0, base.embed.numel() / flat(base).numel())
    torch.testing.assert_close(merged.embed, moved.embed)
    assert torch.equal(merged.norm, base.norm)


def test_what_the_merges_share() -> None:
    """With one model, or several alike, nothing to trim and scale 1, all merges give the model back."""
    base = decoder()
    model = shifted(base, 1, 0.1)
    for merged in (
        average([model, model]),
        task_arithmetic(base, [model, model], 0.5),
        ties(base, [model, model], 1.0, 1.0),
    ):
        torch.testing.assert_close(flat(merged), flat(model), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(flat(ties(base, [model], 0.0, 0.2)), flat(base))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        ties(decoder(), [decoder("llama-grouped-untied"), decoder()], 1.0, 0.2)
