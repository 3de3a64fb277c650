"""Making matplotlib's SVG part of a page: its fonts, its colours, unique names, few bytes."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from kdengine.cli.report.theme import STAND_INS

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_FONT = re.compile(r"font: (?:[^;]*?)([\d.]+)px[^;]*")
_DECIMALS = re.compile(r"(-?\d+\.\d\d)\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline(source: str, name: str, description: str) -> str:
    """Turn a document that matplotlib wrote into an element for the page.

    Args:
        source: the SVG document.
        name: distinguishes this drawing's internal names from other drawings'.
        description: what a screen reader says.

    Returns:
        An ``<svg>`` element without fonts, fixed colours or references to anything outside.
    """
    root = ET.fromstring(source)  # our own drawing, not someone's file
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    used = set(_REFERENCE.findall(source)) | {
        target.removeprefix("#") for element in root.iter() if (target := element.get(f"{_XLINK}href"))
    }
    for element in root.iter():
        _plain(element, name, used)
    _drop_empty(root)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _plain(element: ET.Element, name: str, used: set[str]) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    if element.text and not element.text.strip():
        element.text = None
    if element.tail and not element.tail.strip():
        element.tail = None
    identity = element.attrib.pop("id", None)
    if identity in used:
        element.set("id", f"{name}-{identity}")
    if target := element.attrib.pop(f"{_XLINK}href", None):
        element.set("href", f"#{name}-{target.removeprefix('#')}")
    for attribute, text in element.attrib.items():
        if attribute not in ("id", "href"):
            element.set(attribute, _value(attribute, text, name))


def _value(attribute: str, text: str, name: str) -> str:
    text = _REFERENCE.sub(rf"url(#{name}-\1)", text)
    if attribute == "style":
        text = _FONT.sub(r"font-size: \1px", text)
        for stand_in, variable in STAND_INS.items():
            text = text.replace(stand_in, f"var({variable})")
        return text.replace(": ", ":").replace("; ", ";")
    return " ".join(_DECIMALS.sub(r"\1", text).split())


def _drop_empty(element: ET.Element) -> None:
    for child in list(element):
        _drop_empty(child)
        if child.tag in ("g", "defs") and len(child) == 0:
            element.remove(child)
