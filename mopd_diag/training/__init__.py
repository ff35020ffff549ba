"""Training: one algorithm a file over one shared loop."""
