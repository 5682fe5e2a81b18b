"""Tasks by name: the extensions of the group ``lightship.tasks``.

A bundle names its task, the version of its codec and a configuration. A task is code that is installed here, never
code from a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from lightship.errors import InvalidInput, NotFound
from lightship.extensions import load_extension
from lightship.tasks.task import Task
from lightship.types import Json

__all__ = ["load_task"]


class _TaskClass(Protocol):
    codec_version: int

    def from_config(self, config: Mapping[str, Json]) -> Task: ...


def load_task(name: str, codec_version: int, config: Mapping[str, Json]) -> Task:
    """Build the task called ``name``.

    Raises:
        NotFound: no installed package has a task of that name, or the one that has it cannot be imported.
        Conflict: two packages have one.
        InvalidInput: the codec version is not one that is read here, or the configuration is wrong.
    """
    try:
        task_class: _TaskClass = load_extension("tasks", name)
    except (ImportError, AttributeError) as exc:
        raise NotFound(f"The task {name!r} is registered but cannot be imported: {exc}. Install it again.") from exc
    if codec_version != task_class.codec_version:
        raise InvalidInput(
            f"Codec version {codec_version} of the task {name!r} is not read here; this installation reads version "
            f"{task_class.codec_version}. Use the version of Lightship that made the bundle, or a newer one."
        )
    return task_class.from_config(config)
