"""The control plane: what it says is what it does, and what others' dashboards ask for is there."""

from __future__ import annotations

import contextlib
import socket
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lightship.errors import InvalidInput
from lightship.serve.limits import Clocks, Limits, limits_of, size_of
from lightship.tasks.image_pixels import png_bytes


def test_the_document_describes_every_path_and_status(locked_server):
    """Each path answers with a key and without one as the document says."""
    read = locked_server.headers("read")
    document = httpx.get(f"{locked_server.control_url}/openapi.json", headers=read).json()

    for path, operations in document["paths"].items():
        if "get" not in operations:
            continue
        said = operations["get"]["responses"]
        url = f"{locked_server.control_url}{path}"
        with_key, without = httpx.get(url, headers=read), httpx.get(url)
        assert str(with_key.status_code) in said
        assert str(without.status_code) in said
        assert (without.status_code == 401) == ("security" not in operations["get"])
        assert next(iter(said["200"]["content"])) in with_key.headers["content-type"]
    assert document["openapi"].startswith("3.1")


def test_unknown_paths_and_methods_are_errors_of_the_one_form(locked_server):
    """Also here, for who has a key."""
    read = locked_server.headers("read")
    missing = httpx.get(f"{locked_server.control_url}/nothing", headers=read)
    posted = httpx.post(f"{locked_server.control_url}/models", headers=read)

    assert (missing.status_code, list(missing.json())) == (404, ["error"])
    assert (posted.status_code, list(posted.json())) == (405, ["error"])


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 403), ("evil.example:80", 403), ("127.0.0.1:8001", 200), ("localhost", 200), ("[::1]:1", 200)],
)
def test_without_keys_a_page_cannot_come_by_a_name_of_its_own(server, host, status):
    """DNS that points a site's name at this machine makes it the page's own site, whose questions have no Origin."""
    assert httpx.get(f"{server.control_url}/models", headers={"host": host}).status_code == status


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE", "TRACE"])
def test_a_stranger_cannot_tell_what_there_is(locked_server, method):
    """Without a key, or with a wrong one, everything but the two health questions is 401: no 404, 405 or redirect."""
    paths = (
        "/",
        "/metrics",
        "/metrics/",
        "/models",
        "/models/",
        "/nothing",
        "/livez/",
        "/openapi.json",
        "/docs",
        "/%2e",
    )
    said = {
        (path, str(headers)): httpx.request(method, f"{locked_server.control_url}{path}", headers=headers).status_code
        for path in paths
        for headers in ({}, {"authorization": f"Bearer lsk_{'0' * 8}_{'x' * 43}"})
    }
    live = httpx.request(method, f"{locked_server.control_url}/livez").status_code

    assert set(said.values()) == {401}, said
    assert live == (200 if method in ("GET", "HEAD") else 405)


def test_metrics_are_there_under_the_names_of_triton_and_tf_serving(server, image):
    """With the same values as ours."""
    for index in range(3):
        httpx.post(f"{server.url}/predict/digits", content=png_bytes(image(index)[:, :, None])).raise_for_status()
    httpx.post(f"{server.url}/predict/digits", content=b"no image")

    text = httpx.get(f"{server.control_url}/monitoring/prometheus/metrics").text
    values = {
        (sample.name, *(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    version = (("model", "digits"), ("version", "1"))

    assert values[("nv_inference_request_success", ("model", "digits"))] >= 3
    assert values[("nv_inference_request_failure", ("model", "digits"), ("reason", "OTHER"))] >= 1
    assert values[("nv_inference_count", *version)] == values[("lightship_rows_total", *version)]
    assert values[("nv_inference_exec_count", *version)] == values[("lightship_batches_total", *version)]
    assert values[("nv_inference_compute_infer_duration_us", *version)] == pytest.approx(
        values[("lightship_run_seconds_total", *version)] * 1e6
    )
    assert values[(":tensorflow:serving:request_count", ("model_name", "digits"), ("status", "OK"))] >= 3
    assert values[(":tensorflow:serving:request_latency_count", ("API", "raw"), ("model_name", "digits"))] >= 4


@pytest.fixture
def control_address(server):
    """Return host and port of the control plane."""
    url = httpx.URL(server.control_url)
    return url.host, url.port


def take_answer(sock: socket.socket) -> None:
    """Ask whether the server lives, and read all of the answer."""
    sock.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200")


def test_half_heads_do_not_hide_the_health(server, connect, control_address):
    """Far more of them than there are places, of all kinds: silent, half a head, kept after an answer."""
    for _ in range(40):
        sock = connect(control_address)
        take_answer(sock)
        sock.sendall(b"GET /li")
    for index in range(120):
        sock = connect(control_address)
        if index % 2:
            sock.sendall(b"GET /livez HTTP/1.1\r\nX: ")
    began = time.monotonic()
    with httpx.Client(base_url=server.control_url, headers={"connection": "close"}) as client:
        statuses = [client.get(path).status_code for path in ("/livez", "/readyz", "/metrics") * 20]

    assert statuses == [200] * 60
    assert time.monotonic() - began < 4  # before the clock of those heads helps


@pytest.mark.parametrize("kept", [False, True])
def test_a_head_that_does_not_end_is_closed(connect, control_address, kept):
    """Five seconds after it began, though a byte comes now and then; an empty line begins one too."""
    sock = connect(control_address)
    if kept:
        take_answer(sock)
        time.sleep(1.0)  # does not count
    pieces = b"\r\n\r\n" + b"GET /livez HTTP/1.1\r\nX: " + b"a" * 100
    sock.settimeout(0.2)
    began = time.monotonic()
    for index in range(len(pieces)):
        with contextlib.suppress(TimeoutError, ConnectionError):
            sock.sendall(pieces[index : index + 1])
            assert sock.recv(4096) == b""
            break
        if time.monotonic() - began > 8:
            break

    assert 4.5 < time.monotonic() - began < 6.5


def test_a_head_without_bound_is_closed(connect, control_address):
    """It would fill the memory within its five seconds."""
    sock = connect(control_address)
    with pytest.raises(ConnectionError):
        sock.sendall(b"GET /livez HTTP/1.1\r\nX: " + b"a" * (256 << 20))


def test_a_client_that_takes_no_answers_holds_no_place(server, control_address):
    """It asks for more and more metrics on many connections; others are answered."""
    with contextlib.ExitStack() as stack:
        for _ in range(80):
            sock = stack.enter_context(socket.create_connection(control_address, timeout=5))
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
        assert httpx.get(f"{server.control_url}/livez", timeout=10).status_code == 200


def test_limits_and_clocks_are_read_from_text():
    """Sizes with their units, seconds as numbers; the others keep their defaults."""
    limits, clocks = limits_of(["queue_requests=512", "body_bytes=1g", "drain_s=2.5"])

    assert limits == Limits(queue_requests=512, body_bytes=1 << 30)
    assert clocks == Clocks(drain_s=2.5)
    assert [size_of(text) for text in ("7", "2k", "512MiB", "1GB")] == [7, 2048, 512 << 20, 1 << 30]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queue_request=5", "Did you mean queue_requests"),
        ("drain_s", "NAME=VALUE"),
        ("drain_s=soon", "drain_s must be above 0"),
        ("drain_s=nan", "drain_s must be above 0"),
        ("connections=0", "at least 1"),
        ("connections=-5", "whole number"),
        ("body_bytes=1.5g", "whole number"),
    ],
)
def test_a_wrong_limit_says_what_it_can_be(text, message):
    """With the nearest names."""
    with pytest.raises(InvalidInput, match=message):
        limits_of([text])
