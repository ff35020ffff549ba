"""Evaluation records from anywhere, as one frame: one row a scored answer."""
