"""The recipe on the page: coloured syntax, and what differs between the recipes of several runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

_TOKEN = re.compile(
    r"(?P<comment>\#[^\n]*)"
    r'|(?P<string>"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\')'
    r"|(?P<table>^[ \t]*\[\[?[^\]\n=]+\]\]?(?=[ \t]*(?:\#|$)))"
    r"|(?P<key>[\w.-]+(?=[ \t]*=))"
    r"|(?P<number>\b(?:true|false|[+-]?\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?)\b)",
    re.MULTILINE | re.IGNORECASE,
)


def highlighted(text: str) -> str:
    """A TOML text as HTML, escaped, its tokens in spans.

    >>> highlighted("lr = 0.1  # <b>")
    '<span class="key">lr</span> = <span class="number">0.1</span>  <span class="comment"># &lt;b&gt;</span>'
    """
    pieces, end = [], 0
    for match in _TOKEN.finditer(text):
        pieces.append(escape(text[end : match.start()]))
        pieces.append(f'<span class="{match.lastgroup}">{escape(match.group())}</span>')
        end = match.end()
    return "".join([*pieces, escape(text[end:])]).strip()


def differences(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all recipes, with each recipe's value; an absent one is an en dash.

    >>> differences([{"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}])
    [('a.b', ['1', '3'])]
    """
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = sorted({key for settings in flat for key in settings})
    rows = [(key, [settings.get(key, "\N{EN DASH}") for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1 and key not in ("name", "description")]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
