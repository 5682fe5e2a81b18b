"""The recipe: a TOML file that says what to ship. It is checked once, here; the rest of the code sees typed values.

A key that is not known is refused with the nearest known one: a dropped typo would be a wrong model.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lightship.errors import InvalidInput, InvalidRecipe
from lightship.extensions import extension_names
from lightship.registry.names import check_name

__all__ = ["Data", "Gate", "Image", "Optimize", "Recipe", "Split", "Train", "load_recipe"]

_LARGEST_SEED = 2**53 - 1  # what JSON carries exactly


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Split(_Section):
    """Fractions of the four parts. They must sum to 1."""

    train: float = Field(0.6, gt=0, lt=1, description="rows that the model learns from")
    validation: float = Field(0.1, gt=0, lt=1, description="rows for early stopping")
    selection: float = Field(0.1, gt=0, lt=1, description="rows that choose among variants")
    gate: float = Field(0.2, gt=0, lt=1, description="rows that judge, and nothing else")

    @model_validator(mode="after")
    def _sums_to_one(self) -> Split:
        total = self.train + self.validation + self.selection + self.gate
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four fractions must sum to 1, got {total:g}")
        return self


class Data(_Section):
    """Where the rows come from and how they are split."""

    source: str = Field(description="package:…, folder:…, csv:… or parquet:…; paths are relative to the recipe")
    label_column: str = Field("label", description="the column of a table that holds the class")
    image_column: str | None = Field(None, description="the column that holds the image or its path")
    seed: int = Field(0, ge=0, le=_LARGEST_SEED, description="the split's seed")
    split: Split = Split()


class Image(_Section):
    """The image that the model sees. What is left out is found from the training rows."""

    height: int | None = Field(None, ge=8, le=1024, description="pixels; default: the rows' own, at most 64")
    width: int | None = Field(None, ge=8, le=1024, description="pixels; default: the rows' own, at most 64")
    channels: Literal[1, 3] | None = Field(None, description="1 gray, 3 color; default: as the rows are")


class Train(_Section):
    """How the model is trained."""

    architecture: Literal["cnn-28", "cnn-24"] = Field("cnn-28", description="the network")
    epochs: int = Field(30, ge=1, le=10_000, description="most passes over the training rows")
    batch_size: int = Field(64, ge=1, le=65_536, description="rows in a step")
    optimizer: Literal["sgd", "momentum", "adamw"] = Field("adamw", description="the optimizer")
    learning_rate: float = Field(0.002, gt=0, le=10, description="the highest learning rate")
    schedule: Literal["constant", "cosine", "one-cycle"] = Field("one-cycle", description="how the rate changes")
    weight_decay: float = Field(0.01, ge=0, le=10, description="pull of the weights towards zero")
    dropout: float = Field(0.25, ge=0, le=0.95, description="share of features dropped in a step")
    label_smoothing: float = Field(0.0, ge=0, le=0.95, description="share of a label spread over the others")
    shift: float = Field(0.0, ge=0, le=64, description="augmentation: largest shift, pixels")
    rotate: float = Field(0.0, ge=0, le=180, description="augmentation: largest rotation, degrees")
    scale: float = Field(0.0, ge=0, le=0.9, description="augmentation: largest change of size, a fraction")
    patience: int = Field(8, ge=1, description="epochs without a better validation value before stopping")
    monitor: Literal["loss", "accuracy", "last"] = Field(
        "loss", description="the validation value that picks the epoch that is kept; last: always the last one"
    )
    seed: int = Field(0, ge=0, le=_LARGEST_SEED, description="seed of weights, order and augmentation")
    threads: int = Field(2, ge=1, le=256, description="CPU threads; part of the result, so it is fixed here")


class Optimize(_Section):
    """How variants are made and one is chosen."""

    variant: str = Field("auto", description="auto, reference, or the name of a variant that must pass")
    passes: tuple[str, ...] | None = Field(
        None, min_length=1, description="passes or variants that auto tries; default: those that suit this machine"
    )
    objective: str = Field(
        "latency", description="what auto prefers: latency, throughput, size, memory, or weights: latency=0.7,size=0.3"
    )
    minutes: float = Field(5.0, gt=0, le=10_080, description="time for making and measuring variants")
    calibration_rows: int = Field(256, ge=1, le=100_000, description="training rows that fix int8 ranges")
    pairs: int = Field(200, ge=20, le=100_000, description="most interleaved timing pairs per process")
    batch: int = Field(1, ge=1, le=1024, description="rows in a call whose latency counts")

    @field_validator("objective")
    @classmethod
    def _is_an_objective(cls, value: str) -> str:
        from lightship.optimize.objective import Objective

        try:
            return str(Objective.parse(value))
        except InvalidInput as exc:
            raise ValueError(str(exc)) from exc

    @field_validator("passes", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f'must be a list, e.g. ["{value}"]')
        if value == []:
            raise ValueError('must name a pass; to make no variant, set `variant = "reference"`')
        return tuple(value) if isinstance(value, list) else value

    @field_validator("passes")
    @classmethod
    def _differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and len(set(value)) < len(value):
            raise ValueError("each pass may stand there once")
        for name in value or ():
            _check_pass(name, also=())
        return value

    @field_validator("variant")
    @classmethod
    def _is_known(cls, value: str) -> str:
        _check_pass(value, also=("auto", "reference"))
        return value


def _check_pass(name: str, *, also: tuple[str, ...]) -> None:
    """Refuse an unknown pass now: it is first used when the training is over."""
    from lightship.optimize.plan import known_plans

    known = (*also, *dict.fromkeys((*extension_names("passes"), *known_plans())))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"must be one of {', '.join(known)}{hint}")


class Gate(_Section):
    """What the evidence must show before anything is released."""

    min_accuracy: float = Field(0.0, ge=0, lt=1, description="the accuracy's lower bound must reach this")
    margin: float = Field(0.01, gt=0, lt=1, description="the largest accuracy that the variant may lose")
    confidence: float = Field(0.95, ge=0.5, lt=1, description="confidence of every interval and test")
    overfitting_limit: float = Field(0.05, gt=0, le=1, description="largest gap of train over validation accuracy")
    overfitting: Literal["report", "require"] = Field("report", description="whether that gap can refuse a release")
    temperature: Literal["report", "apply"] = Field(
        "report", description="whether the temperature that calibrates on selection rows goes into the release"
    )


class Recipe(_Section):
    """Everything that decides what is shipped."""

    name: str = Field(description="the model's name in the registry")
    task: Literal["image-classification"] = Field("image-classification", description="what the model does")
    data: Data
    image: Image = Image()
    train: Train = Train()
    optimize: Optimize = Optimize()
    gate: Gate = Gate()

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        try:
            return check_name(value)
        except InvalidInput as exc:
            raise ValueError(str(exc)) from exc


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        InvalidRecipe: the file cannot be read, is not TOML, or says something that a recipe cannot; the message lists
            every such place with what was allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except FileNotFoundError as exc:
        raise InvalidRecipe(f"There is no recipe {path}. Give the path of a .toml file.") from exc
    except OSError as exc:
        raise InvalidRecipe(f"The recipe {path} cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise InvalidRecipe(f"The recipe {path} is not UTF-8 text: {exc.reason} at byte {exc.start}.") from exc
    except tomllib.TOMLDecodeError as exc:
        raise InvalidRecipe(f"The recipe {path} is not valid TOML: {exc}.") from exc
    try:
        return Recipe.model_validate(data)
    except ValidationError as exc:
        lines = "\n".join(f"  {_explain(error)}" for error in exc.errors(include_url=False))
        raise InvalidRecipe(f"The recipe {path} cannot be used:\n{lines}") from exc


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys_at(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}."
        return f"{place}: there is no such key. {hint}"
    if error["type"] == "missing":
        return f"{place}: is missing."
    came = error["input"]
    if error["type"] == "model_type":
        return f"{place}: must be a table, [{place}]. Got {came!r}."
    return f"{place}: {error['msg'].removeprefix('Value error, ')}. Got {came!r}."


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    section: Any = Recipe
    for part in location:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
