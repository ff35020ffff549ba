"""The micro model and its tokenizer; checkpoints in and out. Knows nothing of worlds."""
