"""Reading the fenced code blocks of the documentation."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), *ROOT.glob("plugins/*/*.md")])

_FENCE = re.compile(r"^```(?P<language>\w*)(?P<info>.*)$")
_COMMENT = re.compile(r"^<!-- (?P<text>.*) -->$")
_TITLE = re.compile(r"title=\"([^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: the first word after the fence.
        title: the name of the file that it is, or None.
        comment: the HTML comment on the line before, or None.
        heading: the last heading of the second level before it.
        line: where its text begins, from 1.
        text: what it holds.
    """

    language: str
    title: str | None
    comment: str | None
    heading: str
    line: int
    text: str


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a file, in order."""
    found: list[Block] = []
    heading, before = "", ""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    for number, line in lines:
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        if (fence := _FENCE.match(line)) is not None:
            text = []
            for _, inner in lines:
                if inner == "```":
                    break
                text.append(inner)
            title, comment = _TITLE.search(fence["info"]), _COMMENT.match(before)
            found.append(
                Block(
                    fence["language"],
                    title and title[1],
                    comment and comment["text"],
                    heading,
                    number + 1,
                    "\n".join(text) + "\n",
                )
            )
        before = line
    return found


def titled(path: Path, title: str) -> Block:
    """The block that is a file of this name."""
    return next(block for block in blocks(path) if block.title == title)


def commented(path: Path, comment: str) -> Block:
    """The block below ``<!-- comment -->``."""
    return next(block for block in blocks(path) if block.comment == comment)


def run_python(block: Block, path: Path, namespace: dict[str, object]) -> None:
    """Execute a block; a traceback shows the document's own lines."""
    source = "\n" * (block.line - 1) + block.text
    exec(compile(source, str(path), "exec"), namespace)
