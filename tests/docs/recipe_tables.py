"""The tables of the recipe reference, made from the recipe's own types.

``python -m tests.docs.recipe_tables`` prints them.
"""

import json
import typing
from types import NoneType, UnionType

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kdengine.recipe import schema

TABLES = {
    "Top level": schema.Recipe,
    "`[data]`": schema.DataTable,
    "`[teacher]`": schema.TeacherTable,
    "`[[teacher.members]]`": schema.MemberTable,
    "`[teacher.train]`": schema.TeacherTrainTable,
    "`[student]`": schema.ModelTable,
    "`[losses.LABEL]`": schema.LossTable,
    "`[batch_transforms.LABEL]`": schema.ComponentTable,
    "`[optimizer]`": schema.OptimizerTable,
    "`[lr_schedule]`": schema.LRScheduleTable,
    "`[train]`": schema.TrainTable,
    "`[evaluate]`": schema.EvaluateTable,
}
"""Heading -> what stands below it."""

NAMES = {str: "string", int: "whole number", float: "number", bool: "true or false", NoneType: "", dict: "table"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def type_of(annotation: typing.Any) -> str:
    """A type in words; None is not said, since a key that may be None may be left out."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_of(inner[0])
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin in (typing.Union, UnionType):
        return " or ".join(filter(None, map(type_of, inner)))
    if origin is list:
        return f"list of {type_of(inner[0])}s".replace(" or ", "s or ")
    if origin is dict:
        return "tables" if isinstance(inner[1], type) and issubclass(inner[1], BaseModel) else "table"
    return "table" if isinstance(annotation, type) and issubclass(annotation, BaseModel) else NAMES[annotation]


def limits_of(field: FieldInfo) -> str:
    """What a number must be."""
    bounds = [f"{SIGNS[name]} {value:g}" for item in field.metadata for name, value in sorted(bound(item).items())]
    return f" {' and '.join(bounds)}" if bounds else ""


def bound(item: typing.Any) -> dict[str, float]:
    """A constraint by name."""
    return {name: getattr(item, name) for name in SIGNS if getattr(item, name, None) is not None}


def default_of(field: FieldInfo) -> str:
    """The default as TOML."""
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, BaseModel):
        given = field.default.model_dump(exclude_unset=True)
        return f"`{{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in given.items())} }}`" if given else "`{}`"
    return f"`{json.dumps(field.default)}`"


def rows(model: type[BaseModel]) -> list[str]:
    """A line for each key of a table."""
    return [
        f"| `{name}` | {type_of(field.annotation)}{limits_of(field)} | {default_of(field)} | {meaning_of(field)} |"
        for name, field in model.model_fields.items()
    ]


def meaning_of(field: FieldInfo) -> str:
    """Its own description, or the first line of its table's."""
    if field.description:
        return field.description
    tables = [field.annotation, *typing.get_args(field.annotation)]
    table = next((t for t in tables if isinstance(t, type) and issubclass(t, BaseModel)), None)
    return "" if table is None else (table.__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    for title, table in TABLES.items():
        print(f"### {title}\n\n| Key | Type | Default | Meaning |\n|---|---|---|---|")
        print("\n".join(rows(table)), end="\n\n")
