"""The temperature that calibrates a model, put into its task: of a recipe's release, and of an optimized version.

It takes the place of the one that the task has. Graphs give logits as before, so it is fitted and applied to these, and
what a version had is never applied twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightship.bundle.manifest import TaskRef
from lightship.bundle.statement import TASK_SUBJECT, Evidence
from lightship.errors import InvalidInput
from lightship.tasks.image_classification import ImageClassification
from lightship.tasks.task import Task
from lightship.validate.checks.calibration import applied, temperature_in

__all__ = ["about_task", "require_temperature", "temperature_of", "with_temperature"]


def temperature_of(task: Task) -> float:
    """Return what logits are divided by before they become probabilities; 1 where a task makes none."""
    return float(task.temperature) if isinstance(task, ImageClassification) else 1.0


def require_temperature(task: Task) -> ImageClassification:
    """Refuse a task whose answers no temperature could change.

    Raises:
        InvalidInput: it gives the graph's own outputs.
    """
    if not isinstance(task, ImageClassification):
        raise InvalidInput(
            f"A temperature is applied where probabilities are made, and the task {task.name!r} gives the graph's own "
            "outputs as they are. Leave it at 'report', and divide the logits where you make probabilities of them."
        )
    return task


def with_temperature(task: Task, evidence: Sequence[Evidence]) -> tuple[TaskRef, tuple[Evidence, ...]]:
    """Return the task with the temperature that the evidence tells, and that evidence about it.

    Raises:
        InvalidInput: the task takes none, or none was fitted.
    """
    calm = TaskRef.of(replace(require_temperature(task), temperature=temperature_in(evidence)))
    return calm, tuple(about_task(applied(each) if each.check == "calibration" else each, calm) for each in evidence)


def about_task(evidence: Evidence, task: TaskRef) -> Evidence:
    """Return evidence that speaks of a task that differs by its temperature.

    It is as true of that one: a temperature changes neither tensors nor logits nor which class comes first.
    """
    return replace(evidence, subjects={**evidence.subjects, TASK_SUBJECT: task.digest})
