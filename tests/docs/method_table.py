"""The table of methods in docs/methods.md, from the losses' docstrings, their needs and what was measured.

``python -m tests.docs.method_table`` writes it; ``python -m tests.benchmarks.methods`` measures before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdengine.cli.describe import references
from kdengine.host import Host
from kdengine.losses import kdengine_losses
from kdengine.recipe.plan import Plan
from tests.benchmarks import methods
from tests.losses.test_against_papers import TRANSCRIPTIONS

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "methods.json"
PAGE = DOCS / "methods.md"
START, END = "<!-- table: methods -->\n", "<!-- end -->\n"
ITEMS = 2
"""Of a data set, told to losses that have to know: only what they need is looked at."""
HEAD = """\
| method | source | needs | top-1 | step, times `kd` | more memory | tested against |
|---|---|---|---|---|---|---|
"""


def read() -> dict[str, Any]:
    """What was measured."""
    measured: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return measured


def percent(spread: Mapping[str, float]) -> str:
    """Mean and standard deviation of an accuracy."""
    return f"{100 * spread['mean']:.1f} ± {100 * spread['sd']:.1f} %"


def table(measured: Mapping[str, Any]) -> str:
    """The table: the student alone, then a row for each method."""
    alone = f"| the student alone | | labels | {percent(measured['alone'])} | | | |\n"
    every = methods.recipes()
    return HEAD + alone + "".join(row(name, every[name], measured["methods"][name]) for name in every)


def row(name: str, tree: dict[str, Any], figures: Mapping[str, Any]) -> str:
    """A method in one line."""
    cells = [
        f"`{name}`",
        "; ".join(references(subject(name))),
        ", ".join(needs(methods.plan_of(name, tree))),
        percent(figures["top1"]) + (f" (alone {percent(figures['alone'])})" if "alone" in figures else ""),
        f"{figures['cost']:.2f}",
        f"{figures['memory']:.2f} MiB",
        TRANSCRIPTIONS.get(name, "`papers.relations`"),  # of a teacher: tests/teachers/test_against_papers.py
    ]
    return f"| {' | '.join(cells)} |\n"


def subject(name: str) -> Callable[..., Any]:
    """The component that a row is about: the loss of that name, else the teacher source."""
    host = Host(autoload=False)
    kind = "losses" if name in kdengine_losses() else "teachers"
    return host.component(kind, name).load()


def needs(plan: Plan) -> list[str]:
    """What the losses of a method read, beside the cross-entropy that all have."""
    own = [bound(items=ITEMS) for label, bound in plan.losses.items() if label != "ce"]
    said = {
        "teacher's logits": any(loss.needs.teacher and loss.needs.logits for loss in own),
        "features": any(loss.needs.student_features for loss in own),
        "labels": any(loss.needs.labels for loss in own),
        "index of items": any(loss.needs.index for loss in own),
        "whole batches": any(loss.scope == "batch" for loss in own),
    }
    return [what for what, needed in said.items() if needed]


def write() -> None:
    """Put the table and its circumstances into docs/methods.md."""
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")


def rendered(page: str, measured: Mapping[str, Any]) -> str:
    """The page with the table as it should be."""
    circumstances = f"{measured['seeds']} seeds, torch {measured['torch']}, {measured['date']}:\n\n"
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: START + circumstances + table(measured) + "\n" + END, page)


if __name__ == "__main__":
    write()
