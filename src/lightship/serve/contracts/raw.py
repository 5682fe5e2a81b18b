"""The raw door: a file in, an answer out. ``curl --data-binary @photo.png`` is a whole client.

The body is one raw input as the model's task takes it; the answer is the task's own, with model and version before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec

from lightship.errors import InvalidInput, LightshipError, NotFound, Unavailable, UnsupportedMedia
from lightship.serve.access import Role
from lightship.serve.catalog import Catalog
from lightship.serve.dispatch import Exchange, Route
from lightship.serve.http import Response
from lightship.serve.limits import Limits
from lightship.serve.model import Answer, ServedModel, Work

__all__ = ["RawDoor"]

_ANY_MEDIA = "application/octet-stream"


class RawDoor:
    """Answers ``POST /predict/{model}``."""

    name: ClassVar[str] = "raw"

    def __init__(self, catalog: Catalog, *, limits: Limits, stopping: Callable[[], bool]) -> None:  # noqa: ARG002
        self._catalog = catalog

    def routes(self) -> Sequence[Route]:
        """Return the routes of the raw door."""
        infer = frozenset({Role.INFER})
        return [
            Route("POST", pattern, infer, self._predict, admit=self._admit, contract=self.name)
            for pattern in ("/predict/{model}", "/predict/{model}/versions/{version}")
        ]

    def _model(self, exchange: Exchange) -> ServedModel:
        model = self._catalog.find(exchange.params["model"], exchange.params.get("version"))
        if model is None or not model.task.labels:  # a model of tensors has no raw door
            raise NotFound("No model of that name and version is served here.")
        exchange.model = model.name
        return model

    def _admit(self, exchange: Exchange) -> None:
        exchange.version = exchange.admitted = model = self._model(exchange)
        media = exchange.head.headers.get("content-type", _ANY_MEDIA).partition(";")[0].strip().lower()
        if media != _ANY_MEDIA and media not in model.task.media_types:
            allowed = ", ".join((*model.task.media_types, _ANY_MEDIA))
            raise UnsupportedMedia(f"The content type must be one of {allowed}. Got {media[:80]!r}.")
        if exchange.head.body_bytes == 0:
            raise InvalidInput("The body must be one raw input, such as the bytes of an image. It is empty.")
        model.admit(exchange.head.body_bytes or 0, exchange.key)

    def _predict(self, exchange: Exchange) -> None:
        model: ServedModel = exchange.admitted

        def done(answer: Answer | None, error: LightshipError | None) -> None:
            if answer is None:
                exchange.fail(error or Unavailable("The server is being stopped."))
            else:
                start = msgspec.json.encode({"model": model.name, "version": model.source.version})
                exchange.answer(Response(200, (start[:-1] + b"," + answer.answers[0][1:],)))

        work = Work("raw", 1, len(exchange.body), exchange.deadline_s, done=done, raws=(exchange.body,))
        exchange.body = b""
        if exchange.key is not None:
            work.owner = exchange.key.id
        model.submit(work)
        exchange.on_gone = work.cancel
