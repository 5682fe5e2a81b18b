"""What the control plane speaks, as an OpenAPI document."""

from __future__ import annotations

from typing import Any

from lightship.version import __version__

__all__ = ["openapi"]

_ERROR = {"$ref": "#/components/responses/Error"}


def openapi() -> dict[str, Any]:
    """Return the document (OpenAPI 3.1)."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lightship control plane",
            "version": __version__,
            "description": "Health, metrics and state of one server. Versions change in the registry, which the server "
            "follows; only while it cannot be read they go back from here.",
        },
        "paths": {
            "/livez": _get("The process answers.", {"200": _json("Live", live="boolean")}, is_open=True),
            "/readyz": _get(
                "All models answer, and the server is not being stopped.",
                {"200": _json("Ready", ready="boolean"), "503": _json("Not ready", ready="boolean")},
                is_open=True,
            ),
            "/metrics": _get("Prometheus metrics.", {"200": _text("Metrics")}),
            "/monitoring/prometheus/metrics": _get("The same, where TF Serving has it.", {"200": _text("Metrics")}),
            "/models": _get("What is served, and what became of the last changes.", {"200": _state()}),
            "/models/{name}/rollback": _post(
                "Serve the version before again, while the registry cannot be read.",
                {
                    "200": _json("What is served now", name="string", version="integer"),
                    **dict.fromkeys(("401", "403", "404", "409", "503"), _ERROR),
                },
                parameter="name",
            ),
            "/openapi.json": _get("This document.", {"200": _json("OpenAPI document")}),
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "See `lightship keys`."}},
            "responses": {"Error": _json("Why not", error="string")},
        },
        "security": [{"key": []}],
    }


def _get(summary: str, responses: dict[str, Any], *, is_open: bool = False) -> dict[str, Any]:
    refusals = {"403": _ERROR} if is_open else {"401": _ERROR, "403": _ERROR}
    operation: dict[str, Any] = {"summary": summary, "responses": {**responses, **refusals}}
    if is_open:
        operation["security"] = []
    return {"get": operation}


def _post(summary: str, responses: dict[str, Any], *, parameter: str) -> dict[str, Any]:
    named = {"name": parameter, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {"post": {"summary": summary, "parameters": [named], "responses": responses}}


def _json(description: str, **properties: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": list(properties),
        "properties": {name: {"type": kind} for name, kind in properties.items()},
    }
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _state() -> dict[str, Any]:
    return _json("State", ready="boolean", references="array", models="array")
