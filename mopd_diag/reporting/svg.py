"""Altair charts as static SVG: the page needs no script, no eval and no library to show them, on screen or on paper.

Colours arrive as CSS variables, so one picture follows the reader's theme. Each mark that has a sentence gets it as <title>: browsers
show it on hover even without the page's own small script.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import vl_convert
from markupsafe import Markup

_SVG = "http://www.w3.org/2000/svg"
_DROPPED = {
    "style",
    "role",
    "aria-roledescription",
    "aria-hidden",
    "aria-label",
    "pointer-events",
    "xlink:href",
    "href",
}


@dataclass(frozen=True)
class Picture:
    """One chart at one width."""

    width: int
    svg: Markup


def pictures(draw: Callable[[int], Any], widths: Sequence[int], name: str) -> list[Picture]:
    """The chart drawn for each width; the stylesheet shows the one that fits its container."""
    return [Picture(width, static_svg(draw(width), f"{name}-{width}")) for width in widths]


def static_svg(chart: Any, name: str) -> Markup:
    """One chart as inline SVG. Ids are prefixed with `name`, roles that only make sense to Vega are left out."""
    spec = chart.to_dict()
    told = {row["about"] for rows in spec.get("datasets", {}).values() for row in rows if "about" in row}
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(spec))
    for element in root.iter():
        label = element.get("aria-label")
        for attribute in list(element.attrib):
            if attribute in _DROPPED or attribute.startswith("{"):
                del element.attrib[attribute]
            elif attribute == "id" or element.attrib[attribute].startswith("url(#"):
                element.attrib[attribute] = re.sub(r"^(url\(#)?", rf"\g<1>{name}-", element.attrib[attribute])
        if label in told:  # Vega labels the other marks too, with field names
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = label
            element.insert(0, title)
            element.set("class", "tip")
    first = root[0] if len(root) else None
    if first is not None and first.tag == f"{{{_SVG}}}rect":
        root.remove(first)
    root.attrib.pop("height", None)
    root.set("width", "100%")
    root.set("aria-hidden", "true")
    ElementTree.register_namespace("", _SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # well-formed XML, text escaped by the serializer
