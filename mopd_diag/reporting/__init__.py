"""Findings, records and traces -> HTML, Markdown and the charts and words that the app shares. Never a model, never torch."""
