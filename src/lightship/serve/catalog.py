"""Which model versions a server has, and which of them a name means now."""

from __future__ import annotations

from collections.abc import Iterable

from lightship.serve.model import ServedModel

__all__ = ["Catalog"]


class Catalog:
    """The model versions that a server has, by name and version."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.models = tuple(models)
        self._by_name: dict[str, dict[str, ServedModel]] = {}
        for model in self.models:
            self._by_name.setdefault(model.name, {})[model.version] = model

    @property
    def ready(self) -> bool:
        """Whether every model is ready."""
        return all(model.ready for model in self.models)

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a name that are served; none if the name is not."""
        return tuple(self._by_name.get(name, ()))

    def find(self, name: str, version: str | None = None) -> ServedModel | None:
        """Return a model version; without a version, the one that was named first at the start."""
        versions = self._by_name.get(name)
        if versions is None:
            return None
        return versions.get(version) if version is not None else next(iter(versions.values()))
