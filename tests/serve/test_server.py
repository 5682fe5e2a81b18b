"""The real server as a process: right answers through every door, from the client that people use."""

from __future__ import annotations

import base64
import json
import signal
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPResponse

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from lightship.tasks.image_pixels import png_bytes

TOLERANCE = 2e-5  # batches of another size may add up in another order


def png(image, seed: int) -> bytes:
    """Return an image file by seed."""
    return png_bytes(image(seed)[:, :, None])


@pytest.fixture
def client(server):
    """Return an unmodified tritonclient."""
    found = triton.InferenceServerClient(server.url.removeprefix("http://"), concurrency=8)
    yield found
    found.close()


@pytest.fixture
def http(server):
    """Return an HTTP client of the shared server."""
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


V2_HEAD = b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"


def v2_json(images: np.ndarray) -> bytes:
    """Return a request for logits in JSON."""
    one = {"name": "image", "datatype": "FP32", "shape": images.shape, "data": images.ravel().tolist()}
    return json.dumps({"inputs": [one]}, separators=(",", ":")).encode()


def answer_on(sock: socket.socket) -> tuple[int, bytes]:
    """Read one answer."""
    with HTTPResponse(sock) as answer:
        answer.begin()
        return answer.status, answer.read()


def ask(client, images: np.ndarray, *, binary: bool, model: str = "digits") -> np.ndarray:
    """Ask for logits with tritonclient."""
    given = triton.InferInput("image", images.shape, "FP32")
    given.set_data_from_numpy(images, binary_data=binary)
    wanted = [triton.InferRequestedOutput("logits", binary_data=binary)]
    return client.infer(model, [given], outputs=wanted, request_id="7").as_numpy("logits")


def test_tritonclient_finds_the_server_and_its_model(client):
    """Live, ready, metadata; the version by number too."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "2")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("digits")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 33])
def test_tritonclient_gets_what_the_engine_gives(client, runner, task, image, binary, rows):
    """Also for more rows than the graph was proven for (8): the server splits and joins them."""
    images = task.encode_many(image(seed) for seed in range(rows))["image"]

    answer = ask(client, images, binary=binary)

    assert answer.shape == (rows, 10)
    np.testing.assert_allclose(answer, runner.run({"image": images})["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_its_own_answers_among_many(server, runner, task, image, binary):
    """Eight at once, each with its own rows: nobody gets another's."""
    sets = [
        task.encode_many(image(seed) for seed in range(start, start + 1 + start % 3))["image"] for start in range(60)
    ]

    def work(own: list[np.ndarray]) -> list[np.ndarray]:
        client = triton.InferenceServerClient(server.url.removeprefix("http://"))  # it belongs to one thread
        try:
            return [ask(client, images, binary=binary) for images in own]
        finally:
            client.close()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, [sets[index::8] for index in range(8)]))

    ordered = [images for index in range(8) for images in sets[index::8]]
    for images, answer in zip(ordered, (answer for own in answers for answer in own), strict=True):
        np.testing.assert_allclose(answer, runner.run({"image": images})["logits"], atol=TOLERANCE, rtol=0)


def test_texts_that_come_at_once_are_read_each_for_itself(server, runner, task, image):
    """In one turn of the loop: a broken one, one of a wrong shape and one whose client has gone spoil no other."""
    images = task.encode_many(image(seed) for seed in range(6))["image"]
    texts = [v2_json(images[index : index + 1]) for index in range(6)]
    texts[1], texts[3] = texts[1][:-1], texts[3].replace(b"[1,1,28,28]", b"[1,1,28,27]")
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(server.address, timeout=20)) for _ in texts]
        server.process.send_signal(signal.SIGSTOP)  # so that it finds all of them at once
        for sock, text in zip(socks, texts, strict=True):
            sock.sendall(V2_HEAD % len(text) + text)
        socks[4].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socks[4].close()
        server.process.send_signal(signal.SIGCONT)
        answers = [answer_on(sock) for index, sock in enumerate(socks) if index != 4]

    assert [status for status, _ in answers] == [200, 400, 200, 400, 200]
    for index, (_, body) in zip((0, 2, 5), (answers[0], answers[2], answers[4]), strict=True):
        found = np.array(json.loads(body)["outputs"][0]["data"], np.float32)
        expected = runner.run({"image": images[index : index + 1]})["logits"][0]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_raw_images(client, runner, task, image, binary):
    """Model `digits.raw`: image files in, labels with probabilities out."""
    files = [png(image, seed) for seed in range(11)]
    logits = runner.run(task.encode_many(files))
    expected = task.decode(logits)
    given = triton.InferInput("raw", [len(files)], "BYTES")
    if binary:
        given.set_data_from_numpy(np.array(files, dtype=object))
    else:
        given.set_data_from_numpy(np.array([base64.b64encode(file) for file in files], dtype=object), binary_data=False)
        given._parameters["content_type"] = "base64"

    result = client.infer("digits.raw", [given])

    assert [label.decode() for label in result.as_numpy("label")] == [one["label"] for one in expected]
    np.testing.assert_allclose(result.as_numpy("probability"), [one["probability"] for one in expected], atol=1e-5)
    matrix = [[one["probabilities"][label] for label in task.labels] for one in expected]
    np.testing.assert_allclose(result.as_numpy("probabilities"), matrix, atol=1e-5)


def test_tritonclient_is_told_what_is_wrong(client, task, image):
    """The message names the field."""
    images = task.encode_many([image(1)])["image"]
    with pytest.raises(InferenceServerException, match="No model of that name"):
        ask(client, images, binary=True, model="nothing")
    with pytest.raises(InferenceServerException, match="shape of input 'image'"):
        ask(client, images[:, :, :27], binary=True)


def test_the_raw_door_answers_an_image(http, runner, task, image):
    """One file in, one JSON object out."""
    file = png(image, 3)
    (expected,) = task.decode(runner.run(task.encode_many([file])))

    for media in ("image/png", "application/octet-stream"):
        answer = http.post("/predict/digits", content=file, headers={"content-type": media})
        assert answer.status_code == 200
        body = answer.json()
        assert (body["model"], body["version"], body["label"]) == ("digits", 1, expected["label"])
        assert body["probability"] == pytest.approx(expected["probability"], abs=1e-5)
        assert sum(body["probabilities"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("content", "media", "status"),
    [
        (b"not an image", "image/png", 415),
        (b"\x89PNG\r\n\x1a\n broken", "image/png", 400),
        (b"", "image/png", 400),
        (b"x", "text/plain", 415),
        (b"x", "image/tiff", 415),
    ],
)
def test_the_raw_door_refuses_what_is_no_image(http, content, media, status):
    """And says so; the server lives on."""
    answer = http.post("/predict/digits", content=content, headers={"content-type": media})

    assert answer.status_code == status
    assert answer.json()["error"]


def test_one_bad_image_in_a_batch_fails_alone(http, server, image):
    """The good ones that came with it get their answers."""
    barrier = threading.Barrier(16)

    def send(index: int) -> int:
        content = b"\x89PNG\r\n\x1a\n broken" if index == 5 else png(image, index)
        with httpx.Client(base_url=server.url, timeout=30) as client:
            barrier.wait()
            return client.post("/predict/digits", content=content).status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(send, range(16)))

    assert statuses == [400 if index == 5 else 200 for index in range(16)]


def test_a_request_with_one_bad_image_fails_as_a_whole(http, image):
    """There is no way to answer half a request in V2."""
    data = [base64.b64encode(content).decode() for content in (png(image, 1), b"broken")]
    given = {"name": "raw", "shape": [2], "datatype": "BYTES", "data": data, "parameters": {"content_type": "base64"}}

    answer = http.post("/v2/models/digits.raw/infer", json={"inputs": [given]})

    assert answer.status_code == 415


def test_ids_come_back(http, image, task):
    """The protocol's in the answer, the request's in the header."""
    images = task.encode_many([image(1)])["image"]
    body = {
        "id": "mine",
        "inputs": [{"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": images.ravel().tolist()}],
    }

    answer = http.post("/v2/models/digits/versions/1/infer", json=body, headers={"x-request-id": "abc"})

    assert answer.status_code == 200
    assert answer.json()["id"] == "mine"
    assert answer.json()["model_version"] == "1"
    assert answer.headers["x-request-id"] == "abc"


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/../digits",
        "/v2/models/..%2fdigits",
        "/v2/models/%64igits",
        "/v2/models/digits%00",
        "/v2/models/digits;a",
        "/v2/models//infer",
        "/v2/models/",
        "/v2/models/digits/versions/0",
        "/v2/models/digits/versions/01",
        "/v2/models/digits/versions/-1",
        "/v2/models/digits/versions/latest",
        "/v2/models/digits/versions/99999999999999999999",
        "/v2/models/digits/versions/1/../1",
        "/v2/models/digits/",
        "/v2/",
        "/V2",
        "//v2",
        "/v2/models/" + "a" * 7000,
        "/v2/repository/models/digits/load",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/logging",
        "/v2/trace/setting",
        "/metrics",
        "/docs",
    ],
)
def test_strange_names_versions_and_paths_are_not_found(server, connect, path):
    """Compared as they came; nothing is decoded or joined (BI-062, BI-070)."""
    sock = connect(server.address)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while piece := sock.recv(65536):
        answer += piece

    assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]


def test_a_deadline_in_the_past_of_the_model_is_504(http, image):
    """Too little time is a time-out, not an error of the server."""
    answer = http.post("/predict/digits", content=png(image, 1), headers={"x-request-timeout-ms": "1"})

    assert answer.status_code in (200, 504)  # one millisecond may even do


def test_metrics_are_in_prometheus_form_and_bounded(server, http, image):
    """Labels come from the registry, never from a request."""
    for index in range(20):
        http.get(f"/v2/models/made-up-{index}")
        http.get(f"/made/up/{index}")
    http.post("/predict/digits", content=png(image, 1))

    text = httpx.get(f"{server.control_url}/metrics").text

    assert 'lightship_requests_total{contract="raw",model="digits",status="200"}' in text
    assert 'lightship_model_ready{model="digits",version="1"} 1.0' in text
    assert 'lightship_queue_requests{model="digits",version="1"} 0.0' in text
    assert "lightship_batch_rows_bucket" in text
    assert "made" not in text


def test_the_control_port_tells_the_state(server):
    """Ready, and what is served from which bytes."""
    assert httpx.get(f"{server.control_url}/livez").json() == {"live": True}
    assert httpx.get(f"{server.control_url}/readyz").json() == {"ready": True}
    (model,) = httpx.get(f"{server.control_url}/models").json()["models"]
    assert (model["name"], model["version"], model["variant"], model["state"]) == ("digits", 1, "reference", "ready")
    assert model["bundle"].startswith("sha256:")
    assert model["largest_batch"] == 8


def test_the_log_has_lines_of_json_without_payloads_or_paths(server):
    """One object a line."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]

    assert any("golden inputs right" in line["event"] for line in lines)
    assert not any("Traceback" in json.dumps(line) for line in lines)


def test_answers_are_bounded_before_they_are_made(home, launch):
    """Two rows of ten numbers are 80 bytes, three are 120."""
    server = launch(home, "digits", "--auth", "none", "--limit", "answer_bytes=100")

    def ask(rows: int) -> httpx.Response:
        image = {"name": "image", "shape": [rows, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784 * rows}
        return httpx.post(f"{server.url}/v2/models/digits/infer", json={"inputs": [image]})

    assert ask(2).status_code == 200
    assert (ask(3).status_code, "limit `answer_bytes`" in ask(3).text) == (413, True)
