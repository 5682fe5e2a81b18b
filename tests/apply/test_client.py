"""Both clients against a real HTTP server on this machine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest
from tests.apply.conftest import GOOD, gray, json_answer

from lightship.apply.answers import Answer
from lightship.apply.client import AsyncClient, Client
from lightship.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidTensor,
    LightshipError,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from lightship.tasks.image_classification import ImageClassification
from lightship.types import TensorSpec


class Synchronous:
    """``AsyncClient`` with the methods of ``Client``, so that one test serves both."""

    def __init__(self, *args: object, **settings: object) -> None:
        self._make = lambda: AsyncClient(*args, **settings)
        asyncio.run(self._make().close())  # settings that are refused are refused now

    def close(self) -> None:
        """Nothing: each call has its own client."""

    def __getattr__(self, name: str):
        async def call(*args: object, **settings: object) -> object:
            async with self._make() as client:
                return await getattr(client, name)(*args, **settings)

        return lambda *args, **settings: asyncio.run(call(*args, **settings))


@pytest.fixture(params=[Client, Synchronous], ids=["sync", "async"])
def connect(request, monkeypatch):
    """Return a function that makes a client of either kind."""
    monkeypatch.delenv("LIGHTSHIP_KEY", raising=False)
    with ExitStack() as stack:

        def make(*args: object, **settings: object) -> object:
            client = request.param(*args, **settings)
            stack.callback(client.close)
            return client

        yield make


def test_a_prediction_comes_back_as_an_answer(serve, connect, png):
    """Label, probabilities, model, version and request id; the body is the file, its type told by its first bytes."""
    script = serve(GOOD)
    answer = connect(script.url, key="k1").predict("digits", png)

    assert answer == Answer("7", 0.9, {"7": 0.9, "1": 0.1}, "digits", 3, "abc")
    (request,) = script.requests
    assert (request.method, request.path, request.body) == ("POST", "/predict/digits", png.read_bytes())
    assert request.headers["content-type"] == "image/png"
    assert request.headers["authorization"] == "Bearer k1"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\nrest", "image/png"),
        (b"\xff\xd8\xff\xe0rest", "image/jpeg"),
        (b"RIFF\x00\x00\x00\x00WEBPrest", "image/webp"),
        (b"GIF89a", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_the_media_type_is_told_by_the_first_bytes(serve, connect, data, kind):
    """What is unknown is sent as such: the server judges."""
    script = serve(GOOD)
    connect(script.url).predict("digits", data)

    assert script.requests[0].headers["content-type"] == kind
    assert script.requests[0].body == data


def test_an_array_is_sent_as_a_png_that_loses_nothing(serve, connect):
    """The server decodes the very pixels."""
    script = serve(GOOD)
    pixels = np.random.default_rng(3).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    connect(script.url).predict("digits", pixels)

    task = ImageClassification(("a", "b"), 3, 9, 5, mean=("0.5",) * 3, std=("0.5",) * 3)
    assert np.array_equal(task.decode_pixels(script.requests[0].body), pixels)


def test_what_cannot_be_sent_is_refused_here(serve, connect, tmp_path):
    """A wrong array or path costs no request."""
    script = serve(GOOD)
    client = connect(script.url)

    with pytest.raises(InvalidTensor, match="must be uint8"):
        client.predict("digits", gray(3).astype(np.float32))
    with pytest.raises(NotFound, match="There is no file"):
        client.predict("digits", tmp_path / "none.png")
    with pytest.raises(InvalidInput, match="cannot be read"):
        client.predict("digits", tmp_path)
    with pytest.raises(InvalidInput, match="bytes, a path or a numpy array"):
        client.predict("digits", 3)
    assert script.requests == []


def test_a_busy_server_is_asked_again_when_it_says(serve, connect):
    """429 with Retry-After, then 200: one answer, and not before the second is over."""
    script = serve(json_answer({"error": "full"}, 429, retry_after="1"), GOOD)
    began = time.monotonic()
    answer = connect(script.url).predict("digits", b"x")

    assert answer.label == "7"
    assert time.monotonic() - began >= 1
    assert len(script.requests) == 2


def test_a_server_that_stays_busy_is_an_error_in_its_words(serve, connect):
    """The tries are used up."""
    script = serve(json_answer({"error": "the queue of 'digits' is full"}, 429, retry_after="0"))

    with pytest.raises(Overloaded, match="the queue of 'digits' is full"):
        connect(script.url, retries=2).predict("digits", b"x")
    assert len(script.requests) == 3


def test_a_connection_that_is_cut_after_the_request_is_not_tried_again(serve, connect):
    """The image may be what killed the server."""
    script = serve("reset", GOOD)

    with pytest.raises(Unavailable, match="cannot be reached"):
        connect(script.url).predict("digits", b"x")
    assert len(script.requests) == 1


def test_a_server_that_is_not_there_is_an_error_with_the_address_in_mind(free_url, connect):
    """After all tries, and ready() is a plain no."""
    client = connect(free_url, retries=1)

    with pytest.raises(Unavailable, match="Is it running, and is the address right"):
        client.predict("digits", b"x")
    assert client.ready() is False


@pytest.mark.parametrize("answer", ["hang", "drip"])
def test_a_call_ends_when_its_time_is_over(serve, connect, answer):
    """A server that is silent, or that sends a byte now and then for ever, does not hold a caller."""
    script = serve(answer)
    began = time.monotonic()

    with pytest.raises(DeadlineExceeded, match="in time"):
        connect(script.url, timeout_s=0.3).predict("digits", b"x")
    assert time.monotonic() - began < 3


def test_tensors_go_there_and_back(serve, connect):
    """A server that echoes in binary form gives the same array."""

    def echo(request):
        length = int(request.headers["inference-header-content-length"])
        head = json.dumps({"outputs": json.loads(request.body[:length])["inputs"]}).encode()
        return 200, {"inference-header-content-length": str(len(head))}, head + request.body[length:]

    script = serve(echo)
    array = np.random.default_rng(5).normal(size=(2, 3)).astype(np.float32)
    found = connect(script.url).infer("digits", {"image": array})

    assert script.requests[0].path == "/v2/models/digits/infer"
    assert np.array_equal(found["image"], array)


def test_a_model_says_what_it_takes(serve, connect):
    """Names, dtypes and shapes; a free size is -1."""
    script = serve(
        json_answer(
            {
                "name": "digits",
                "versions": ["3"],
                "platform": "onnxruntime",
                "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}],
                "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
            }
        )
    )
    found = connect(script.url).metadata("digits")

    assert found.versions == ("3",)
    assert found.inputs == (TensorSpec("image", "FP32", (-1, 1, 28, 28)),)
    assert script.requests[0].path == "/v2/models/digits"


def test_ready_is_yes_or_no(serve, connect):
    """503 is a no, without any further try; another key is an error."""
    script = serve(json_answer({}, 503), json_answer({}), json_answer({"error": "no key"}, 401))
    client = connect(script.url)

    assert client.ready() is False
    assert client.ready("digits") is True
    assert [request.path for request in script.requests] == ["/v2/health/ready", "/v2/models/digits/ready"]
    with pytest.raises(Unauthenticated, match=r"no key .*LIGHTSHIP_KEY"):
        client.ready()


def test_the_key_comes_from_the_environment(serve, connect, monkeypatch):
    """A key that is given wins; an empty one means none."""
    script = serve(GOOD)
    monkeypatch.setenv("LIGHTSHIP_KEY", "from-environment")
    for settings in ({}, {"key": "given"}, {"key": ""}):
        connect(script.url, **settings).predict("digits", b"x")

    found = [request.headers.get("authorization") for request in script.requests]
    assert found == ["Bearer from-environment", "Bearer given", None]


@pytest.mark.parametrize("url", ["http://models.example.com", "http://10.0.0.7:8000", "http://localhost.example.com"])
def test_a_key_does_not_go_over_plain_http_to_another_machine(connect, url):
    """The client refuses to be made, wherever the key came from, and does not print the key."""
    with pytest.raises(InvalidInput, match="over plain http") as caught:
        connect(url, key="secret")

    assert "secret" not in str(caught.value)
    connect(url)
    connect(url, key="secret", allow_plain_http=True)


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "http://127.8.9.1:1", "http://[::1]:1", "https://models.example.com"]
)
def test_a_key_may_go_over_https_and_to_this_machine(connect, url):
    """That is the normal case."""
    assert connect(url, key="secret")


@pytest.mark.parametrize("key", ["a b", "a\r\nx: y", "schlüssel", "\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_unprinted(connect, key):
    """A line break would make another header of it."""
    with pytest.raises(InvalidInput, match="printable ASCII without spaces") as caught:
        connect("http://127.0.0.1:1", key=key)

    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://x", "http://", "http://user:pass@x", "http://x/?q", "http://x:99999", "file:///etc"],
)
def test_an_address_that_is_none_is_refused(connect, url):
    """The message shows what one looks like."""
    with pytest.raises(InvalidInput, match="`base_url`"):
        connect(url)


def test_a_server_may_stand_below_a_path(serve, connect):
    """Behind a gateway that serves many things."""
    script = serve(GOOD)
    connect(f"{script.url}/models/eu/").predict("digits", b"x")

    assert script.requests[0].path == "/models/eu/predict/digits"


def test_the_key_does_not_show():
    """A client in a log or a traceback does not give it away."""
    with Client("http://127.0.0.1:1", key="secret") as client:
        assert "secret" not in repr(client)
        assert "secret" not in repr(vars(client))


def test_a_huge_answer_is_not_read(serve, connect, monkeypatch):
    """Memory is bounded by us, not by the server."""
    monkeypatch.setattr("lightship.apply.client.MAX_ANSWER_BYTES", 1000)
    script = serve((200, {}, b" " * 5000))

    with pytest.raises(LightshipError, match="larger than"):
        connect(script.url).predict("digits", b"x")


async def test_one_async_client_answers_many_at_once(serve, png):
    """Calls share connections and do not wait for each other."""
    script = serve(GOOD)
    async with AsyncClient(script.url) as client:
        answers = await asyncio.gather(*(client.predict("digits", png) for _ in range(20)))

    assert {answer.label for answer in answers} == {"7"}
    assert len(script.requests) == 20


def test_the_client_loads_no_engine():
    """Who only asks a server pays for no runtime."""
    program = (
        "import sys, lightship.apply.client\n"
        "print([m for m in ('onnxruntime', 'onnx', 'torch', 'sqlalchemy', 'alembic', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)

    assert done.stdout == "[]\n"
