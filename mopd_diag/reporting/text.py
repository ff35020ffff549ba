"""How numbers and untrusted text are written: once, for the report, the Markdown and the app."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from mopd_diag.types import Estimate

UNKNOWN = "unknown"
SHARES = {"share", "accuracy", "probability"}
DIFFERENCES = {"difference", "points", "accuracy difference", "share difference"}
RATIOS = {"ratio", "recovery", "headroom", "share of headroom", ""}

OBJECT_NAMES = {
    "constructor", "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf", "__proto__",
    "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__",
}  # fmt: skip
ARROWS = {"\n": "↵", "\t": "⇥"}

# -- untrusted text -----------------------------------------------------------------------------------------------------


def visible(text: str, *, spaces: bool = False) -> str:
    """`text` with everything that could hide, reorder or overprint made into harmless, visible characters.

    Line ends and tabs become arrows, other control, bidirectional and format characters their code points in angle quotes, a
    combining mark without a letter before it gets a dotted circle. `spaces` also marks blanks.

    >>> visible("a\\u202eb\\n")
    'a‹U+202E›b↵'
    """
    shown = []
    for position, character in enumerate(text):
        code, category = ord(character), unicodedata.category(character)
        if character in ARROWS:
            shown.append(ARROWS[character])
        elif category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(f"‹U+{code:04X}›")
        elif character == " ":
            shown.append("␣" if spaces else " ")
        elif category == "Zs":
            shown.append(f"‹U+{code:04X}›" if spaces else " ")
        elif category in ("Mn", "Me", "Mc") and position == 0:
            shown.append("◌" + character)
        else:
            shown.append(character)
    return "".join(shown)


def basic(text: str) -> str:
    """`visible`, and safe for Vega: characters beyond the basic plane as code points (a long label is cut in the middle of one, and
    the converter to SVG dies of the half), names that every JavaScript object has in angle quotes (a category of such a name
    is taken for the property).

    >>> basic("a😀"), basic("constructor")
    ('a‹U+1F600›', '‹constructor›')
    """
    shown = "".join(c if ord(c) < 0x10000 else f"‹U+{ord(c):04X}›" for c in visible(text))
    return f"‹{shown}›" if shown in OBJECT_NAMES else shown


def clip(text: str, limit: int = 400) -> str:
    """`text` shortened to `limit` characters, saying how many were left out."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"


# -- numbers ------------------------------------------------------------------------------------------------------------


def fixed(x: float, digits: int, *, signed: bool = False) -> str:
    """Fixed-point with a real minus sign and no negative zero."""
    text = f"{x:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(x: float, digits: int = 0) -> str:
    """A share as a percentage: 0.973 -> `97%`."""
    return UNKNOWN if math.isnan(x) else f"{fixed(100 * x, digits)}%"


def share(e: Estimate) -> str:
    """`97% [95, 98]`; `unknown` when undefined (the reason is in the note)."""
    return _with_interval(e, 100, 0, "%", signed=False)


def points(e: Estimate, *, unit: bool = True) -> str:
    """A difference of two shares, signed, in percentage points: `−21 points [−26, −16]`."""
    word = " point" if e.defined and abs(round(100 * e.value)) == 1 else " points"
    return _with_interval(e, 100, 0, word if unit else "", signed=True)


def ratio(e: Estimate) -> str:
    """`0.97 [0.94, 1.00]`."""
    return _with_interval(e, 1, 2, "", signed=False)


def estimate(e: Estimate | None) -> str:
    """An estimate in the form that its unit asks for."""
    if e is None:
        return "–"
    if e.unit in SHARES:
        return share(e)
    if e.unit in DIFFERENCES:
        return points(e)
    return ratio(e) if e.unit in RATIOS else _with_interval(e, 1, 3, f" {e.unit}", signed=False)


def _with_interval(e: Estimate, scale: float, digits: int, suffix: str, *, signed: bool) -> str:
    if not e.defined:
        return UNKNOWN
    value = fixed(scale * e.value, digits, signed=signed) + suffix
    if math.isnan(e.low) or math.isnan(e.high):
        return f"{value} (no interval)"
    low, high = (fixed(scale * x, digits, signed=signed) for x in (e.low, e.high))
    return f"{value} [{low}, {high}]"


def count(n: float) -> str:
    """A large count with three significant digits: 3252000 -> `3.25 M`."""
    if math.isnan(n):
        return UNKNOWN
    for power, suffix in ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(n) >= power:
            unit = 1e3 if suffix == " k" else power
            return f"{n / unit:.3g}{suffix}"
    return f"{n:,.0f}".replace(",", " ")


def duration(seconds: float) -> str:
    """`45 s`, `6 min 41 s`, `2 h 05 min`."""
    if math.isnan(seconds):
        return UNKNOWN
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 1 or seconds == 0 else f"{seconds:.1f} s" if seconds >= 0.05 else "< 0.1 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def listed(words: Sequence[str], *, none: str = "none") -> str:
    """`a`, `a and b`, `a, b and c`."""
    if not words:
        return none
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def plural(n: int, word: str) -> str:
    """`1 domain`, `4 domains`."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
