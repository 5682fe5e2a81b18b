"""A variant that does not work on this machine: its reference answers, loudly; or, if so wished, nothing is served."""

from __future__ import annotations

import logging

import httpx
import numpy as np
import pytest
from prometheus_client import generate_latest

from lightship.bundle.manifest import Variant
from lightship.data.home import Home
from lightship.errors import LightshipError
from lightship.serve.control import state_of
from lightship.serve.metrics import registry_of
from lightship.serve.server import Server, ServerOptions
from lightship.serve.source import read_source
from lightship.tasks.image_pixels import png_bytes

pytestmark = pytest.mark.timeout(240)


def variant(engine: str = "onnxruntime", **options: str) -> Variant:
    """Return a variant of the small model."""
    return Variant("proposed", engine, "variants/proposed/model.onnx", "fp32", options)


BROKEN = {
    "golden": (variant(), 1.0, "must give the expected 'logits'"),
    "engine": (variant("tomorrow"), 0.0, "'tomorrow' is among the engines"),
    "option": (variant(precision="bf16"), 0.0, "precision"),
    "option-of-tomorrow": (variant(sparsity="half"), 0.0, "'sparsity' = 'half' of the bundle is not known"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory, release_model) -> Home:
    """Return a home with a model for each way to be broken, and one that works."""
    made = Home(tmp_path_factory.mktemp("fallback") / "home").ensure()
    for name, (proposed, off, _) in BROKEN.items():
        release_model(made, name, proposed=proposed, proposed_off=off)
    release_model(made, "works", proposed=variant("openvino"))
    return made


async def serve(home: Home, name: str, **options: object) -> tuple[dict, dict, str]:
    """Serve a model; return its answer to an image, its state and the server's metrics."""
    image = png_bytes(np.full((28, 28, 1), 90, np.uint8))
    async with (
        Server([read_source(home, name)], ServerOptions(port=0, **options)) as server,
        httpx.AsyncClient() as web,
    ):
        answer = await web.post(f"http://127.0.0.1:{server.port}/predict/{name}", content=image, timeout=60)
        state = state_of(server)["models"][0]
        metrics = generate_latest(registry_of(server.requests, lambda: server.models, server.versions)).decode()
    assert answer.status_code == 200, answer.text
    return answer.json(), state, metrics


@pytest.mark.parametrize("name", sorted(BROKEN))
async def test_the_reference_answers_for_a_variant_that_fails_here(home, name, caplog):
    """The log, the state and the metrics say so, and why."""
    with caplog.at_level(logging.ERROR, "lightship.serve.model"):
        _, state, metrics = await serve(home, name)

    assert state["variant"] == "reference"
    assert state["instead_of"]["variant"] == "proposed"
    assert BROKEN[name][2] in state["instead_of"]["reason"]
    assert f'lightship_model_fell_back{{model="{name}",version="1"}} 1.0' in metrics
    assert "falls back to its reference" in caplog.text


@pytest.mark.parametrize("name", sorted(BROKEN))
async def test_a_strict_server_does_not_serve_such_a_model(home, name):
    """Then the error is what the variant's worker said."""
    with pytest.raises(LightshipError, match=BROKEN[name][2]):
        await serve(home, name, strict_variant=True)


async def test_a_variant_of_another_engine_is_served(home):
    """The worker loads what the variant names, and nothing falls back."""
    answer, state, metrics = await serve(home, "works")

    assert state["variant"] == "proposed"
    assert state["instead_of"] is None
    assert 'lightship_model_fell_back{model="works",version="1"} 0.0' in metrics
    assert answer["label"] == (await serve(home, "golden"))[0]["label"]
