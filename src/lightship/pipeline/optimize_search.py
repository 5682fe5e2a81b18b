"""The search as one request needs it: which plans, on which rows, and where what was made and measured is kept."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightship.data.files import canonical_json, sha256_hex
from lightship.engine.machine import fingerprint
from lightship.errors import InvalidInput
from lightship.optimize.candidate import Rows
from lightship.optimize.plan import Plan, default_plans
from lightship.optimize.search import SearchResult, search
from lightship.optimize.settings import SearchSettings
from lightship.pipeline.cache import code_digest, library_versions
from lightship.pipeline.given_rows import GivenRows
from lightship.pipeline.golden_answers import answers_to
from lightship.pipeline.labeled_answers import MARGINS
from lightship.pipeline.optimize_request import OptimizeRequest
from lightship.pipeline.row_labels import output_of
from lightship.pipeline.variant_look import Subject
from lightship.tasks.tensors import BATCH
from lightship.types import Json, Progress
from lightship.validate.fidelity import FidelityBudget

__all__ = ["margin_of", "search_variants"]

_WASTED = 5.0
"""Times the margin: what loses as much on selection rows is not worth a look at the gate rows."""
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_KEPT_SEARCHES = 4


def search_variants(
    subject: Subject, asked: OptimizeRequest, rows: GivenRows | None, *, folder: Path, progress: Progress
) -> SearchResult:
    """Search round a reference; the same call goes on where it was stopped.

    Args:
        subject: the model.
        asked: plans, objective, time and budgets.
        rows: to calibrate with and to select on; None tries only what should lose nothing, on the golden inputs.
        folder: holds the searches of this model.
        progress: hears what is done.

    Raises:
        InvalidInput: a plan that was asked for changes answers, and there are no rows.
    """
    plans = asked.plans
    if plans is None:
        plans = default_plans(lossless_only=rows is None)
    elif rows is None and (lossy := [plan.name for plan in plans if not plan.lossless]):
        raise InvalidInput(f"{lossy[0]!r} changes answers, so it must be judged on rows. Give them with `--data`.")
    margin = margin_of(asked, rows)
    most = subject.interface.proven.get(BATCH, (1, 1))[1] if subject.batched else 1
    settings = SearchSettings(
        objective=asked.objective,
        minutes=asked.minutes,
        batches=tuple(size for size in _BATCHES if size <= most),
        budget=None if rows is None or rows.labels else asked.budget or FidelityBudget(),
        most_lost=_WASTED * margin,
    )
    work = folder / _key(subject, asked, rows, plans, margin)
    work.mkdir(parents=True, exist_ok=True)
    _forget_oldest(folder, keep=work)
    return search(
        subject.graph,
        plans,
        calibration=[] if rows is None else rows.calibration(),
        selection=_golden_rows(subject, asked) if rows is None else rows.selection(),
        judged=rows is not None,
        settings=settings,
        folder=work,
        progress=progress,
    )


def margin_of(asked: OptimizeRequest, rows: GivenRows | None) -> float:
    """Return what is too much to lose, of labeled rows."""
    return asked.margin or MARGINS[rows.labels.kind if rows and rows.labels else "classes"]


def _golden_rows(subject: Subject, asked: OptimizeRequest) -> Rows:
    """Return what is searched on without rows: the golden inputs, which are only timed."""
    first = {name: array.shape for name, array in subject.golden[0].items()}
    alike = [row for row in subject.golden if {name: array.shape for name, array in row.items()} == first]
    inputs = {name: np.stack([row[name] for row in alike]) for name in alike[0]}
    runner = subject.runner(threads=1)
    try:
        answers = answers_to(runner, alike[0], batched=subject.batched)
    finally:
        runner.close()
    output = output_of(answers, subject.interface.outputs, wanted=asked.output)
    return Rows(inputs, None, output, batched=subject.batched)


def _key(subject: Subject, asked: OptimizeRequest, rows: GivenRows | None, plans: Sequence[Plan], margin: float) -> str:
    """Name the folder of a search by everything that decides it."""
    decided: dict[str, Json] = {
        "reference": sha256_hex(subject.graph),
        "interface": subject.task_digest,
        "rows": None if rows is None else [rows.fingerprint("calibration"), rows.fingerprint("selection")],
        "plans": [plan.name for plan in plans],
        "objective": str(asked.objective),
        "minutes": repr(asked.minutes),
        "budget": None if asked.budget is None else repr(asked.budget),
        "margin": repr(margin),
        "output": asked.output,
        "code": code_digest(
            "optimize",
            "engine",
            "tasks",
            "pipeline/given_rows.py",
            "pipeline/row_labels.py",
            "pipeline/optimize_search.py",
        ),
        "libraries": library_versions("onnx", "onnxruntime", "openvino", "nncf", "numpy"),
        "machine": fingerprint()["digest"],
    }
    return f"search-{sha256_hex(canonical_json(decided))[:16]}"


def _forget_oldest(folder: Path, *, keep: Path) -> None:
    """Keep the folders of the searches that were used last."""
    keep.touch()
    searches = sorted(folder.glob("search-*"), key=lambda path: path.stat().st_mtime_ns)
    for old in searches[:-_KEPT_SEARCHES]:
        shutil.rmtree(old, ignore_errors=True)
