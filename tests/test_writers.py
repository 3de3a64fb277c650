"""Whatever the package writes goes through `kdengine/_files.py`, or is one of a few that have a reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kdengine

PACKAGE = Path(kdengine.__file__).parent

METHODS = {
    "write_text", "write_bytes", "touch", "unlink", "rename", "replace", "rmdir", "rmtree", "copyfile", "copytree",
    "copy", "copy2", "move", "truncate", "ftruncate", "memmap", "savefig", "save_file", "hardlink_to", "symlink_to",
    "link", "symlink", "makedirs", "remove", "removedirs", "tofile",
}  # fmt: skip
"""Names of what changes files, as methods of a path or functions of a module."""
MODULES = {"os", "shutil", "np", "numpy", "torch", "json", "safetensors"}
"""Modules whose functions of those names count; of other things they count as methods of a path."""
NOT_PATHS = {"replace", "copy", "remove", "move", "truncate", "link"}
"""Names that strings, lists, tensors and files have too: they count where they are called of a module, or of a path."""

ALLOWED = {
    "_files.py": "the owner",
    "_locks.py": "a lock's file is held open; its text is for people",
    "loggers/jsonl.py": "append-only, a whole line at a time; half a line is cut off",
    "ops/build.py": "what a compiler leaves in its work folder; the library gets its name by a rename",
    "teachers/table.py": "a memory map; each row has a checksum",
    "testing": "temporary folders of the kit",
    "cli/scaffold.py": "sources of a new plugin, made in a folder that did not exist",
    "cli/listing.py": "a recipe for a person, made anew or refused",
    "cli/running.py": "an empty run directory that was made for nothing",
    "cli/report/plot.py": "a figure in memory",
    "cli/several.py": "standard output, to nowhere",
    "cli/main.py": "standard output, to nowhere",
}


def test_every_writer_goes_through_the_owner_or_has_a_reason():
    found = {name: lines for name, lines in writers().items() if not allowed(name)}
    assert not found, f"write through kdengine._files, or give a reason in ALLOWED: {found}"


def test_every_reason_is_still_needed():
    names = [*writers(), "_files.py"]
    assert [entry for entry in ALLOWED if not any(covers(entry, name) for name in names)] == []


@pytest.mark.parametrize(
    "text",
    [
        "open(p, 'w')", "open(p, mode='ab')", "p.open('r+b')", "p.write_text('x')", "os.replace(a, b)",
        "path.rename(b)",
        "shutil.rmtree(p)", "torch.save(x, p)", "np.memmap(p, mode='r+')", "json.dump(x, f)", "os.open(p, os.O_CREAT)",
        "figure.savefig('x.svg')", "save_file(state, p)", "folder.unlink()", "Path(p).touch()",
    ],
)  # fmt: skip
def test_a_writer_is_seen(text):
    assert changes_files(ast.parse(text).body[0].value)


@pytest.mark.parametrize(
    "text",
    ["open(p)", "p.open('rb')", "'a'.replace('b', 'c')", "os.open(p, os.O_RDONLY)", "torch.load(p)", "line.write(b)",
     "items.remove(x)", "a.copy()", "with_name.replace(a, b)"],
)  # fmt: skip
def test_a_reader_is_not(text):
    assert not changes_files(ast.parse(text).body[0].value)


def allowed(name):
    return any(covers(entry, name) for entry in ALLOWED)


def covers(entry, name):
    return name == entry or name.startswith(f"{entry}/")


def writers():
    """The lines of each module that call what changes files."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        given = {id(node) for block in ast.walk(tree) if is_given_by_the_owner(block) for node in ast.walk(block)}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in given]
        if lines := [call.lineno for call in calls if changes_files(call)]:
            found[path.relative_to(PACKAGE).as_posix()] = sorted(lines)
    return found


def is_given_by_the_owner(block):
    """Whether a block writes into a temporary that the owner puts in place."""
    return isinstance(block, ast.With) and any("'replacing'" in ast.dump(item.context_expr) for item in block.items)


def changes_files(call):
    """Whether a call writes, makes, renames or removes a file."""
    function = call.func
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", None)
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else None
    if owner in ("files", "_files"):
        return False
    if name == "open":
        return opens_for_writing(call, owner)
    if owner in MODULES and (name in METHODS or name in ("save", "dump")):
        return (owner, name) not in {("np", "copy"), ("torch", "copy")}
    if name in NOT_PATHS:
        return owner is not None and ("path" in owner or owner in ("temporary", "folder", "target", "made", "file"))
    return name in METHODS


def opens_for_writing(call, owner):
    if owner == "os":
        return "O_CREAT" in ast.dump(call) or "O_RDWR" in ast.dump(call) or "O_WRONLY" in ast.dump(call)
    strings = [each.value for each in (*call.args, *(k.value for k in call.keywords)) if isinstance(each, ast.Constant)]
    return any(isinstance(text, str) and len(text) <= 3 and set(text) & set("wax+") for text in strings)
