"""The run directory: what is where, written atomically, read lazily. No model and no torch."""
