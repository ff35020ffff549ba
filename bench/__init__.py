"""Side-by-side measurements against other tools: `python -m bench.NAME`, or `mopd-diag bench NAME`."""
