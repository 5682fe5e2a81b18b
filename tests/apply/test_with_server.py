"""Client and command against the server itself, as its own process."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from click.testing import CliRunner
from tests.apply.conftest import TASK, gray, logits_of, start_server

from lightship.apply.client import AsyncClient, Client
from lightship.apply.model import load
from lightship.cli.main import cli
from lightship.errors import InvalidInput, NotFound, Unauthenticated


@pytest.fixture(scope="module")
def server(shared_home, tmp_path_factory):
    """Return (address, file with a key) of a server of ``shades``."""
    with start_server(shared_home, "shades", log=tmp_path_factory.mktemp("server") / "log") as started:
        yield started


@pytest.fixture
def client(server):
    """Return a client with the key."""
    url, key_file = server
    with Client(url, key=key_file.read_text().strip()) as opened:
        yield opened


def test_the_server_answers_as_the_model_in_process_does(client, shared_home, png):
    """One task, one graph: the same label and probabilities on both ways, for files and arrays."""
    with load("shades", home=shared_home) as model:
        for image in (png, gray(3), gray(128)):
            local, remote = model.predict(image), client.predict("shades", image)

            assert remote.label == local.label
            assert dict(remote.probabilities) == pytest.approx(dict(local.probabilities), abs=1e-6)
            assert (remote.model, remote.version) == ("shades", 1)
            assert remote.request_id


def test_tensors_and_metadata_by_v2(client):
    """The graph itself, in binary form, and what it takes; also by version."""
    images = [gray(0), gray(255)]
    found = client.infer("shades", {"image": np.stack([TASK.encode(image)["image"] for image in images])})

    assert found["logits"] == pytest.approx(logits_of(images), abs=1e-5)
    assert client.ready()
    assert client.ready("shades")
    assert [spec.name for spec in client.metadata("shades:1").inputs] == ["image"]


def test_errors_come_back_as_they_were(client, server):
    """Class and words of the server."""
    with pytest.raises(NotFound, match="No model of that name"):
        client.predict("flowers", gray(1))
    with pytest.raises(InvalidInput, match="PNG"):
        client.predict("shades", b"no image")
    with Client(server[0], key="wrong") as stranger, pytest.raises(Unauthenticated, match="LIGHTSHIP_KEY"):
        stranger.predict("shades", gray(1))


async def test_the_async_client_asks_many_at_once(server):
    """In order, each its own answer."""
    url, key_file = server
    async with AsyncClient(url, key=key_file.read_text().strip()) as client:
        answers = await asyncio.gather(*(client.predict("shades", gray(value)) for value in [0, 255, 128] * 5))

    assert [answer.label for answer in answers] == ["dark", "light", "middle"] * 5


def test_the_command_asks_by_url(server, png):
    """``lightship predict shades photo.png --url … --key-file …``."""
    url, key_file = server
    done = CliRunner().invoke(cli, ["predict", "shades", str(png), "--url", url, "--key-file", str(key_file), "--json"])

    assert json.loads(done.stdout)["label"] == "light"
