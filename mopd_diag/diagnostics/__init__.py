"""Diagnostics: one question a file, records and traces -> findings. Reaches models only through a scorer."""
