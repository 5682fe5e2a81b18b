"""What all stages of one run share: the recipe, where it stands, the home, the cache, and who hears of progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from lightship.data.home import Home
from lightship.pipeline.cache import StageCache
from lightship.pipeline.recipe import Recipe
from lightship.types import Json, Progress

__all__ = ["Bench", "settings_json"]


@dataclass(frozen=True, slots=True)
class Bench:
    """The place where one recipe is worked on."""

    recipe: Recipe
    base: Path
    """The folder that relative data paths start from."""
    home: Home
    cache: StageCache
    progress: Progress


def settings_json(section: BaseModel) -> Json:
    """Return a recipe section for a cache key or a lineage: JSON without floats (decimals become strings)."""
    return _without_floats(section.model_dump(mode="json"))


def _without_floats(value: Json) -> Json:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: _without_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_floats(item) for item in value]
    return value
