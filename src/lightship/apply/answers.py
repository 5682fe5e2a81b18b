"""What a classifier answers: the same value from a server and from a model in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from lightship.errors import LightshipError
from lightship.types import Json

__all__ = ["Answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        label: the most probable class.
        probability: of ``label``, in [0, 1].
        probabilities: of every class, the most probable first.
        model: name of the model that answered.
        version: its version; None when the server did not say.
        request_id: what the server's log calls the request; None in process.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    model: str
    version: int | None
    request_id: str | None = None

    @classmethod
    def from_json(cls, value: object, *, model: str, version: int | None, request_id: str | None = None) -> Self:
        """Read what a task's ``decode`` gave, which is also what a server sends.

        Raises:
            LightshipError: it is not that.
        """
        if not isinstance(value, Mapping):
            raise LightshipError(f"The answer of {model!r} must be a JSON object. Got {type(value).__name__}.")
        try:
            probabilities = {str(label): float(share) for label, share in value["probabilities"].items()}
            return cls(str(value["label"]), float(value["probability"]), probabilities, model, version, request_id)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise LightshipError(
                f"The answer of {model!r} must have label, probability and probabilities. Got the keys "
                f"{', '.join(sorted(str(key) for key in value)) or 'none'}. Is that the address of a Lightship server, "
                "and the model a classifier?"
            ) from exc

    def top(self, count: int) -> tuple[tuple[str, float], ...]:
        """Return the ``count`` most probable classes with their probabilities."""
        return tuple(sorted(self.probabilities.items(), key=lambda item: -item[1])[:count])

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "label": self.label,
            "probability": self.probability,
            "probabilities": dict(self.probabilities),
            "model": self.model,
            "version": self.version,
            "request_id": self.request_id,
        }
