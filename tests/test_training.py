"""The loop and the algorithms: resuming, learning in few steps, who carries loss, and how much memory is held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from letters import LETTERS, assert_same_weights, copy, ending, small, taught, weights
from tiny import TOKENIZER, decoder, shifted
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mopd_diag.config import GRPOStage, MOPDStage, SeqKDStage, SFTStage
from mopd_diag.engines import head
from mopd_diag.models.decoder import Decoder
from mopd_diag.training import algorithm, loop
from mopd_diag.training.algorithm import Algorithm, StepBatch, make_parts
from mopd_diag.training.distill import MOPD, reverse_kl
from mopd_diag.training.explore import answer
from mopd_diag.training.grpo import GRPO
from mopd_diag.training.loop import Schedule, TrainingState, train
from mopd_diag.training.seqkd import SeqKD
from mopd_diag.training.sft import SFT, demonstration_batch
from mopd_diag.worlds import World, load_world

MICRO = load_world("micro")
DOMAINS = ["addition", "two-turn", "sorting"]


@pytest.fixture(scope="module")
def letter_model() -> Decoder:
    return taught("abcd")


# --- stopping and going on -----------------------------------------------------------------------------------------


def algorithms() -> dict[str, Algorithm]:
    """Made anew for every run, as a resumed process would."""
    teachers = {name: shifted(decoder(std=0.1), i, 0.05) for i, name in enumerate(("one", "two"))}
    routes = {"addition": "one", "two-turn": "two", "sorting": "two"}
    given = (TOKENIZER, MICRO, DOMAINS, 0)
    sampled = MOPDStage(
        name="s", teachers=routes, prompts=12, form="sampled", baseline="state", weighting="domain-normalized"
    )
    return {
        "sft": SFT(SFTStage(name="s", batch=12), *given),
        "grpo": GRPO(GRPOStage(name="s", prompts=4, group=4), *given),
        "mopd": MOPD(MOPDStage(name="s", teachers=routes, prompts=12), *given, teachers),
        "mopd-sampled": MOPD(sampled, *given, teachers),
        # Twelve steps: answers are sampled for ten steps at once, and the run stops inside the second block.
        "seqkd": SeqKD(SeqKDStage(name="s", teachers=routes, batch=12, steps=13), *given, teachers),
    }


class Stopped(Exception):
    pass


def stop_at(at: int):
    def progress(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == at:
            raise Stopped

    return progress


@pytest.mark.parametrize("name", algorithms())
def test_a_stopped_run_goes_on_bitwise(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "grpo":
        monkeypatch.setattr(World, "score", lambda _, item, text: float(len(text) % 2))
    schedule = Schedule(13, 1e-2, warmup=3, decay=4)
    whole = decoder(std=0.1)
    expected = train(whole, algorithms()[name], schedule)
    start = weights(decoder(std=0.1))
    assert not torch.equal(whole.embed, start["embed"])

    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    saved = tmp_path / "deep" / "state.safetensors"
    with pytest.raises(Stopped):
        train(decoder(std=0.1), algorithms()[name], schedule, saved=saved, progress=stop_at(12))
    again = decoder(seed=99)  # what it starts from does not matter: all is read back
    steps: list[int] = []
    state = train(again, algorithms()[name], schedule, saved=saved, progress=lambda step, *_: steps.append(step))
    assert steps == [12, 13]  # the twelfth step was made but not saved
    assert_same_weights(weights(again), weights(whole))
    same = lambda log: [{k: v for k, v in row.items() if k != "seconds"} for row in log]  # noqa: E731
    assert [str(row) for row in same(state.log)] == [
        str(row) for row in same(expected.log)
    ]  # as text: a loss may be NaN
    assert state.work == expected.work


def test_extension_survives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(8, 1e-2, warmup=2, decay=3)

    def extend(model: Decoder, state: TrainingState) -> int:
        return 4 if state.step < 9 else 0

    whole = decoder(std=0.1)
    assert train(whole, algorithms()["sft"], schedule, extend=extend).step == 12
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    for stop in (6, 7, 10):
        saved = tmp_path / f"{stop}.safetensors"
        with pytest.raises(Stopped):
            train(decoder(std=0.1), algorithms()["sft"], schedule, saved=saved, extend=extend, progress=stop_at(stop))
        again = decoder(seed=99)
        assert train(again, algorithms()["sft"], schedule, saved=saved, extend=extend).step == 12
        assert_same_weights(weights(again), weights(whole))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_state_cut_short_means_starting_anew(share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(4, 1e-2)
    whole = decoder(std=0.1)
    train(whole, algorithms()["sft"], schedule)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    saved = tmp_path / "state.safetensors"
    train(decoder(std=0.1), algorithms()["sft"], schedule, saved=saved)
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    again = decoder(std=0.1)
    train(again, algorithms()["sft"], schedule, saved=saved)
    assert_same_weights(weights(again), weights(whole))


def test_schedule() -> None:
    rates = [Schedule(10, 1.0, warmup=2, decay=4).rate(s) for s in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert Schedule(100, 1.0, decay=50).rate(99) == pytest.approx(0.1)  # never below a tenth


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    class Broken(SFT):
        def token_loss(self, logits_MV, part, where):
            losses, values = super().token_loss(logits_MV, part, where)
            return losses * torch.nan, values

    model = decoder(std=0.1)
    before = weights(model)
    train(model, Broken(SFTStage(name="s", batch=4), TOKENIZER, MICRO, DOMAINS, 0), Schedule(2, 1e-2))
    assert_same_weights(before, weights(model))


# --- learning ------------------------------------------------------------------------------------------------------


def test_sft_lowers_the_loss() -> None:
    model = small()
    sft = SFT(SFTStage(name="base", batch=32), TOKENIZER, MICRO, ["sorting", "brackets"], 0)
    log = train(model, sft, Schedule(40, 1e-2, 5)).log
    assert log[0]["loss"] == pytest.approx(4.6, abs=0.3)  # ln 99: it starts by knowing nothing
    assert sum(row["loss"] for row in log[-5:]) / 5 < 2.2


def test_grpo_raises_the_reward(letter_model: Decoder) -> None:
    grpo = GRPO(GRPOStage(name="t", prompts=8, group=8), TOKENIZER, LETTERS, ["letters"], 0)
    log = train(copy(letter_model), grpo, Schedule(25, 3e-3, 2)).log
    before, after = (sum(row["reward"] for row in rows) / 3 for rows in (log[:3], log[-3:]))
    assert before < 0.45 and after > 0.8
    entropies = [row["entropy"] for row in log if "entropy" in row]  # a step without informing groups has none
    assert entropies[-1] < 0.7 * entropies[0]


@pytest.fixture(scope="module")
def letter_teacher(letter_model: Decoder) -> Decoder:
    return taught("aaab", copy(letter_model), 30)


@pytest.mark.parametrize(
    "options",
    [
        {"form": "full"},
        {"form": "topk", "top_k": 3},
        {"form": "sampled"},
        {"form": "sampled", "baseline": "state"},
        {"form": "sampled", "alpha": 0.5, "group": 4, "prompts": 16},
        {"form": "full", "weighting": "token-balanced"},
        {"form": "full", "temperature": 0.7},
    ],
    ids=str,
)
def test_mopd_pulls_the_student_to_its_teacher(options: dict, letter_model: Decoder, letter_teacher: Decoder) -> None:
    stage = MOPDStage(name="student", teachers={"letters": "t"}, **{"prompts": 64, **options})
    student = copy(letter_model)
    before = divergence(student, letter_teacher)
    mopd = MOPD(stage, TOKENIZER, LETTERS, ["letters"], 0, {"t": letter_teacher})
    train(student, mopd, Schedule(25, 2e-3, 2))
    assert before > 0.1
    assert divergence(student, letter_teacher) < 0.35 * before


def divergence(student: Decoder, teacher: Decoder) -> float:
    """Exact KL(student‖teacher) a token, on answers of the student to prompts of its own."""
    items = LETTERS.draw_batch(["letters"], 128, ("held out",))
    rollouts = answer(student, TOKENIZER, LETTERS, items, seed=1).rollouts
    with torch.no_grad():
        student_logp, teacher_logp = (torch.log_softmax(m(rollouts.ids_NL), -1) for m in (student, teacher))
    kl_NL = reverse_kl(student_logp.flatten(0, 1), teacher_logp.flatten(0, 1)).view(rollouts.ids_NL.shape)
    return float(kl_NL[:, :-1][rollouts.own_NL[:, 1:]].mean())


@pytest.mark.parametrize(
    "options", [{"form": "full"}, {"form": "topk"}, {"form": "sampled", "baseline": "state"}], ids=str
)
def test_teachers_are_left_alone(options: dict, letter_model: Decoder) -> None:
    """No gradient is even computed for them."""
    teacher = taught("ab", copy(letter_model), 5)
    before = weights(teacher)
    mopd = MOPD(
        MOPDStage(name="s", teachers={"letters": "t"}, **options), TOKENIZER, LETTERS, ["letters"], 0, {"t": teacher}
    )
    train(copy(letter_model), mopd, Schedule(2, 1e-3))
    assert_same_weights(before, weights(teacher))
    assert all(p.grad is None for p in teacher.parameters())


def test_seqkd_draws_every_step_anew() -> None:
    """Answers are sampled for a block of steps at once; each step still has its own prompts, whatever the block."""
    method = algorithms()["seqkd"]
    batches = [method.batch(decoder(), step) for step in range(13)]
    prompts = [
        frozenset(prefix[: prefix.index(TOKENIZER.encode(":")[0])] for prefix, *_ in targets(b)) for b in batches
    ]
    assert all(len(p) > 6 for p in prompts)
    assert len(set(prompts)) == 13
    for batch in batches:
        assert sum(float(part.weight_M.sum()) for part in batch.parts) == pytest.approx(1)
    assert sum(b.work.rollouts for b in batches) == 13 * 12
    later = algorithms()["seqkd"].batch(decoder(), 11)
    assert [p.ids_NL.tolist() for p in later.parts] == [p.ids_NL.tolist() for p in batches[11].parts]


def test_seqkd_learns_the_teachers_answers(letter_model: Decoder, letter_teacher: Decoder) -> None:
    stage = SeqKDStage(name="student", teachers={"letters": "t"}, batch=64, steps=20)
    student = copy(letter_model)
    before = divergence(student, letter_teacher)
    train(student, SeqKD(stage, TOKENIZER, LETTERS, ["letters"], 0, {"t": letter_teacher}), Schedule(20, 3e-3, 2))
    assert divergence(student, letter_teacher) < 0.5 * before


# --- who carries loss ----------------------------------------------------------------------------------------------


def whole_step(model: Decoder, batch: StepBatch, method: Algorithm) -> None:
    for part in batch.parts:
        loop._backward(model, method, part)


def test_groups_without_variance_carry_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(std=0.1)
    method = GRPO(GRPOStage(name="t", prompts=6, group=4), TOKENIZER, MICRO, ["addition", "sorting"], 0)
    monkeypatch.setattr(World, "score", lambda *_: 1.0)
    monkeypatch.setattr(TOKENIZER, "eos_id", -1)  # nothing ends: all score 0
    batch = method.batch(model, 0)
    assert batch.parts == [] and batch.metrics["zero_variance"] == 1.0
    monkeypatch.undo()

    before = weights(model)
    monkeypatch.setattr(World, "score", lambda *_: 0.0)
    state = train(model, method, Schedule(2, 1e-2))
    assert_same_weights(before, weights(model))
    assert state.work.tokens_trained == 0 and state.work.tokens_sampled > 0


def test_informing_groups_keep_their_share_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one domain's groups inform; the tokens of the others still count in the denominator."""
    model = ending(decoder(std=0.1))
    method = GRPO(GRPOStage(name="t", prompts=6, group=4), TOKENIZER, MICRO, ["addition", "sorting"], 0)
    monkeypatch.setattr(World, "score", lambda _, item, text: float(item.domain == "addition" and len(text) % 2))
    batch = method.batch(model, 0)
    assert 0 < batch.metrics["zero_variance"] < 1
    everything = batch.work.tokens_sampled
    trained = sum(len(part.targets_M) for part in batch.parts)
    assert 0 < trained < everything
    for part in batch.parts:
        assert (part.fields["advantage"] != 0).all()
        torch.testing.assert_close(part.weight_M, torch.full((len(part.targets_M),), 1 / everything))


def targets(batch: StepBatch) -> list[tuple[tuple[int, ...], int, int]]:
    """(ids of the row up to the target, target, its place) for all tokens with loss, checked against the parts' own ids."""
    found = []
    for part in batch.parts:
        length = part.ids_NL.shape[1]
        for at, target in zip(part.at_M.tolist(), part.targets_M.tolist(), strict=True):
            row, column = divmod(at, length)
            ids = part.ids_NL[row].tolist()
            if column + 1 < length:
                assert ids[column + 1] == target
            found.append((tuple(ids[: column + 1]), target, column + 1))
    return found


def test_sft_leaves_out_prompt_padding_and_world() -> None:
    shown = MICRO.demonstrations(["two-turn", "sorting"], 16, (0,))
    shown = [(item, item.target) for item, _ in shown]
    batch = demonstration_batch(TOKENIZER, MICRO, shown)
    expected = []
    for item, text in shown:
        ids = [*TOKENIZER.encode(item.prompt + text), TOKENIZER.eos_id]
        spans = MICRO.world_spans(item, text)
        assert bool(spans) == (item.domain == "two-turn")
        for place in range(len(item.prompt), len(ids)):
            if not any(start <= place - len(item.prompt) < end for start, end in spans):
                expected.append((tuple(ids[:place]), ids[place], place))
    assert sorted(targets(batch)) == sorted(expected)
    assert sum(float(p.weight_M.sum()) for p in batch.parts) == pytest.approx(1)


def test_mopd_and_grpo_leave_out_prompt_padding_and_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world's reply is read, so it must be in the context of what follows, and never a target."""
    monkeypatch.setattr(World, "reply", lambda _, item, transcript: "{7}")
    monkeypatch.setattr(World, "score", lambda _, item, text: float(len(text) % 2))
    model = ending(decoder(std=0.1))
    reply = TOKENIZER.encode("{7}")
    mopd = MOPD(
        MOPDStage(name="s", teachers=dict.fromkeys(DOMAINS, "t"), prompts=24),
        TOKENIZER,
        MICRO,
        DOMAINS,
        0,
        {"t": model},
    )
    grpo = GRPO(GRPOStage(name="s", prompts=8, group=8), TOKENIZER, MICRO, DOMAINS, 0)
    for method in (mopd, grpo):
        batch = method.batch(model, 0)
        found = targets(batch)
        assert found and len(found) == len(set((p, place, row) for row, (p, _, place) in enumerate(found)))
        after_reply = 0
        for prefix, _, place in found:
            prompt_end = prefix.index(TOKENIZER.encode(":")[0]) + 1
            assert place >= prompt_end
            turn = TOKENIZER.encode("~")[0]
            # Replay the prefix: wherever the model turned, the next three tokens are the world's.
            at, worlds = prompt_end, set()
            while at < len(prefix):
                if prefix[at] == turn:
                    assert list(prefix[at + 1 : at + 4]) == reply[: len(prefix) - at - 1]
                    worlds |= {at + 1, at + 2, at + 3}
                    at += 3
                at += 1
            assert place not in worlds
            after_reply += bool(worlds)
        assert after_reply > 3
    assert len(targets(mopd.batch(model, 0))) == mopd.batch(model, 0).work.tokens_sampled


def test_gradient_reaches_only_logits_with_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's gradient is a sum over positions with loss: recompute it from them alone, world and padding zeroed."""
    monkeypatch.setattr(World, "reply", lambda _, item, transcript: "{7}")
    model, teacher = ending(decoder("llama-grouped-untied", std=0.1)), decoder("llama-grouped-untied", seed=1, std=0.1)
    mopd = MOPD(
        MOPDStage(name="s", teachers=dict.fromkeys(DOMAINS, "t"), prompts=24),
        TOKENIZER,
        MICRO,
        DOMAINS,
        0,
        {"t": teacher},
    )
    batch = mopd.batch(model, 0)
    whole_step(model, batch, mopd)
    assert model.head is not None and model.head.grad is not None
    expected = torch.zeros_like(model.head)
    for part in batch.parts:
        with torch.no_grad():
            hidden_MD = model.hidden(part.ids_NL).flatten(0, 1)[part.at_M]
            teacher_MD = teacher.hidden(part.ids_NL).flatten(0, 1)[part.at_M]
        logits = (hidden_MD @ model.head.detach().T).requires_grad_()
        kl = reverse_kl(torch.log_softmax(logits, -1), torch.log_softmax(teacher_MD @ teacher.head_VD.detach().T, -1))
        (kl * part.weight_M).sum().backward()
        assert logits.grad is not None
        expected += logits.grad.T @ hidden_MD
    torch.testing.assert_close(model.head.grad, expected, atol=1e-6, rtol=1e-4)


# --- microbatches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40, 300, 100_000])
def test_microbatches_do_not_change_the_step(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {"addition": "one", "two-turn": "two", "sorting": "two"}
    teachers = {"one": decoder(seed=5, std=0.1), "two": decoder(seed=6, std=0.1)}
    mopd = MOPD(MOPDStage(name="s", teachers=routes, prompts=32), TOKENIZER, MICRO, DOMAINS, 0, teachers)
    reference, model = ending(decoder(std=0.1)), ending(decoder(std=0.1))
    whole_step(reference, mopd.batch(reference, 0), mopd)
    monkeypatch.setattr(algorithm, "MICROBATCH_TOKENS", size)
    batch = mopd.batch(model, 0)
    whole_step(model, batch, mopd)
    assert all(len(p.ids_NL) == 1 or p.ids_NL.numel() <= size for p in batch.parts)
    assert {p.teacher for p in batch.parts} == {"one", "two"}
    for p, q in zip(reference.parameters(), model.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(q.grad, p.grad, atol=2e-6 * float(p.grad.abs().max()), rtol=1e-4)


def test_parts_hold_every_token_once() -> None:
    generator = torch.Generator().manual_seed(0)
    length_N = torch.randint(2, 40, (70,), generator=generator)
    ids_NL = torch.arange(70 * 40).view(70, 40)
    loss_NL = (
        (torch.rand(70, 40, generator=generator) < 0.4)
        & (torch.arange(40) < length_N[:, None])
        & (torch.arange(40) > 0)
    )
    loss_NL[::9] = False
    groups = [f"t{i % 3}" for i in range(70)]
    parts = make_parts(ids_NL, length_N, loss_NL, ids_NL.float(), {"row": ids_NL // 40}, groups)
    seen = torch.cat([p.targets_M for p in parts])
    assert sorted(seen.tolist()) == ids_NL[loss_NL].tolist()
    for part in parts:
        assert torch.equal(part.weight_M, part.targets_M.float())
        assert {groups[r] for r in part.fields["row"].tolist()} == {part.teacher}
        assert torch.equal(part.ids_NL.flatten()[part.at_M] + 1, part.targets_M)


# --- memory --------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize("form", ["full", "topk", "sampled"])
def test_no_array_over_all_tokens_and_the_vocabulary(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three teachers, a vocabulary of 4,000, and never more than a chunk of logits: not K × T × V, not even T × V."""
    vocabulary, chunk = 4000, 40_000
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 8,
    }
    student, *teachers = (decoder(seed=i, std=0.05, vocab_size=vocabulary, **sizes) for i in range(4))
    named = dict(zip("abc", teachers, strict=True))
    stage = MOPDStage(
        name="s", teachers=dict(zip(DOMAINS, "abc", strict=True)), prompts=24, form=form, baseline="state"
    )
    method = MOPD(stage, TOKENIZER, MICRO, DOMAINS, 0, named)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", chunk)
    tokens = method.batch(student, 0).work.tokens_sampled
    largest = Largest()
    with largest:
        train(student, method, Schedule(1, 1e-3))
    sampling = 24 * vocabulary  # one step of the sampler: a row of logits for each prompt
    assert tokens * vocabulary > 8 * sampling
    assert largest.numel <= max(chunk, sampling, student.embed.numel())
    assert student.embed.grad is None or student.embed.grad.shape == student.embed.shape
