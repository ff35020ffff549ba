"""A small checkpoint with a tokenizer of its own: a random Llama, byte-level BPE with merges, a chat template. Shared by tests."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tiny import decoder
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.tokenizer import Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "Is it true that light is slow? yes no yes no",
    "What is the colour of a plum? blue red red blue ~ ~7;~ fetch~",
] * 4


def bpe(chat_template: str | None = CHAT) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False),
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return Tokenizer(backend, eos_id=2, pad_id=2, chat_template=chat_template, bos=SPECIAL[1])


BPE = bpe()


def save_small(folder: Path, *, chat_template: str | None = CHAT, seed: int = 0) -> Path:
    """A checkpoint directory with that tokenizer and random weights."""
    tokenizer = bpe(chat_template)
    save_checkpoint(decoder(vocab_size=tokenizer.vocab_size, std=0.1, seed=seed), tokenizer, folder)
    return folder


def questions(path: Path, n: int = 24) -> Path:
    """Two domains with one-word answers that a small model learns in a few steps."""
    truth = [
        {
            "id": f"t{i}",
            "prompt": f"Is it true that {i} is slow?",
            "domain": "truth",
            "answer": "yes",
            "verifier": "exact",
        }
        for i in range(n)
    ]
    colour = [
        {
            "id": f"c{i}",
            "prompt": f"What is the colour of {i}?",
            "domain": "colour",
            "answer": ("red", "blue")[i % 2],
            "verifier": "exact",
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*truth, *colour]))
    return path
