"""``ship``: all stages in a row, from a recipe to a signed release. Each stage also runs alone, up to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightship.data.home import Home
from lightship.pipeline.bench import Bench
from lightship.pipeline.cache import Finished, StageCache
from lightship.pipeline.recipe import load_recipe
from lightship.pipeline.report import write_report
from lightship.pipeline.stages.optimize import Optimized
from lightship.pipeline.stages.optimize import optimize as run_optimize
from lightship.pipeline.stages.prepare import prepare as run_prepare
from lightship.pipeline.stages.release import Released
from lightship.pipeline.stages.release import release as run_release
from lightship.pipeline.stages.train import Trained
from lightship.pipeline.stages.train import train as run_train
from lightship.pipeline.stages.validate import Validated
from lightship.pipeline.stages.validate import validate as run_validate
from lightship.types import Json, Progress, Silent
from lightship.validate.gate import require

__all__ = ["Shipped", "optimize", "release", "ship", "train", "validate"]


@dataclass(frozen=True, slots=True)
class Shipped:
    """A release and the stages that led to it.

    Attributes:
        released: name, version, digests, evidence.
        report: the HTML report.
        stages: every stage in order; ``skipped`` tells which were unchanged.
    """

    released: Released
    report: Path
    stages: tuple[Finished, ...]


def ship(recipe: Path | str, *, home: Path | str | None = None, progress: Progress | None = None) -> Shipped:
    """Run everything that a recipe asks for and is not done yet; return the release.

    Args:
        recipe: path of a ``recipe.toml``.
        home: where state lives; default: ``LIGHTSHIP_HOME``, else the user's data folder.
        progress: hears of long work; default: nobody.

    Raises:
        InvalidRecipe, InvalidData: what came in cannot be used.
        GateRefused: the evidence does not meet the policy; the report says why, nothing was registered.
        Conflict: another process is at work on the same recipe in this home.
    """
    with _bench(recipe, home, progress) as bench:
        prepared = run_prepare(bench)
        trained = run_train(bench, prepared)
        optimized = run_optimize(bench, prepared, trained)
        validated = run_validate(bench, prepared, trained, optimized)
        if not validated.decision.released:
            _refuse(bench, write_report(bench, prepared, trained, validated, None), validated)
        released = run_release(bench, prepared, trained, validated)
        report = write_report(bench, prepared, trained, validated, released)
    stages = (prepared, trained, optimized, validated, released)
    return Shipped(released, report, tuple(stage.finished for stage in stages))


def _refuse(bench: Bench, report: Path, validated: Validated) -> None:
    """Say no, with every reason and where to read more; to programs with all that was found."""
    found: dict[str, Json] = {**validated.to_json(), "stages": [validated.finished.to_json()], "report": str(report)}
    require(validated.decision, what=f"{bench.recipe.name} ({validated.chosen}; report: {report})", found=found)


release = ship
"""``release`` needs all stages before it, so it is ``ship`` by another name."""


def train(recipe: Path | str, *, home: Path | str | None = None, progress: Progress | None = None) -> Trained:
    """Run the stages up to the trained model and its reference graph."""
    with _bench(recipe, home, progress) as bench:
        return run_train(bench, run_prepare(bench))


def optimize(recipe: Path | str, *, home: Path | str | None = None, progress: Progress | None = None) -> Optimized:
    """Run the stages up to the measured variants."""
    with _bench(recipe, home, progress) as bench:
        prepared = run_prepare(bench)
        return run_optimize(bench, prepared, run_train(bench, prepared))


def validate(
    recipe: Path | str,
    *,
    variant: Path | str | None = None,
    home: Path | str | None = None,
    progress: Progress | None = None,
) -> Validated:
    """Run the stages up to the gate's decision.

    Args:
        variant: a graph file that is judged instead of the variants made here; it must pass.

    Raises:
        GateRefused: the evidence does not meet the policy.
    """
    with _bench(recipe, home, progress) as bench:
        prepared = run_prepare(bench)
        trained = run_train(bench, prepared)
        optimized = run_optimize(bench, prepared, trained, variant=Path(variant) if variant else None)
        validated = run_validate(bench, prepared, trained, optimized)
        report = write_report(bench, prepared, trained, validated, None)
        if not validated.decision.released:
            _refuse(bench, report, validated)
        return validated


@contextmanager
def _bench(recipe: Path | str, home: Path | str | None, progress: Progress | None) -> Iterator[Bench]:
    path = Path(recipe)
    checked = load_recipe(path)
    place = (Home(Path(home).resolve()) if home else Home.from_environment()).ensure()
    cache = StageCache(place.runs / checked.name)
    with cache.locked():
        yield Bench(checked, path.resolve().parent, place, cache, progress or Silent())
