"""pandas as Any, for the type checker only.

pandas ships no types. What a checker infers from its source, and what its stubs say, is a union of every kind of cell for
`row["score"]` and a Series or an array for most selections; nearly all that is reported on data frames is then false.
"""

from typing import Any

def __getattr__(name: str) -> Any: ...
