"""Which model versions a server has, and which of them a name means now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lightship.serve.model import ServedModel

__all__ = ["Catalog"]

_Names = Mapping[str, Mapping[str, ServedModel]]


class Catalog:
    """The model versions that a server has, by name and version. A change is one assignment."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.models: tuple[ServedModel, ...]
        """All versions, in the order of the references that name them; each once."""
        self._names: _Names
        self.replace(models)

    def replace(self, models: Iterable[ServedModel]) -> None:
        """Serve these models from now on; whoever has found one keeps it."""
        self.models, self._names = _ordered(models)

    @property
    def ready(self) -> bool:
        """Whether every model is ready."""
        return all(model.ready for model in self.models)

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a name that are served; none if the name is not."""
        return tuple(self._names.get(name, ()))

    def find(self, name: str, version: str | None = None) -> ServedModel | None:
        """Return a model version; without a version, that of the reference that was named first at the start."""
        versions = self._names.get(name)
        if versions is None:
            return None
        return versions.get(version) if version is not None else next(iter(versions.values()))


def _ordered(models: Iterable[ServedModel]) -> tuple[tuple[ServedModel, ...], _Names]:
    unique = tuple(dict.fromkeys(models))
    names: dict[str, dict[str, ServedModel]] = {}
    for model in unique:
        names.setdefault(model.name, {})[model.version] = model
    return unique, names
