"""Casts of known provenance: how often does the attribution name the right origin, and how sure is it rightly?"""

from bench.provenance.run import run, show

__all__ = ["run", "show"]
