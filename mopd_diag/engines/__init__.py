"""Engines: sampling and scoring, and the chunked head that both share with training."""
