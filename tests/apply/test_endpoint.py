"""A live endpoint against the release that it should serve: real servers, and a proxy that changes what passes."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from tests.apply.conftest import TASK, gray, logits_of, release, start_server

from lightship.apply.client import AsyncClient
from lightship.apply.endpoint import validate_endpoint
from lightship.apply.grpc_client import GrpcClient
from lightship.bundle.manifest import Variant
from lightship.bundle.signing import TrustStore
from lightship.bundle.statement import open_evidence
from lightship.cli.main import cli
from lightship.data.home import Home
from lightship.errors import InvalidInput, Unauthenticated, Unavailable, status_of
from lightship.types import Verdict

EXAMPLES = [gray(value) for value in (0, 120, 255)]
OTHER_MEAN = {**TASK.config(), "mean": ["0.4"]}
WAYS = ["tensors, alone", "raw, alone", "tensors, 8 at once", "raw, 8 at once", "tensors, 3 rows in a request"]


@pytest.fixture(scope="module")
def server(shared_home, tmp_path_factory):
    """Return (address, key) of a server of ``shades:1``."""
    with start_server(shared_home, "shades", log=tmp_path_factory.mktemp("server") / "log") as (url, key_file):
        yield url, key_file.read_text().strip()


def validated(home: Home, url: str, key: str, reference: str = "shades", together: int = 8):
    """Return the evidence about an endpoint."""
    return validate_endpoint(home, reference, AsyncClient(url, key=key, timeout_s=60), together=together)


def proxy(serve: Callable, upstream: str, change: Callable[[str, dict, bytes], tuple[dict, bytes]]) -> str:
    """Return the address of a proxy before ``upstream`` that changes (path, headers, body) of what was answered."""
    web = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))

    def forward(request) -> tuple[int, dict[str, str], bytes]:
        kept = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
        got = web.request(request.method, upstream + request.path, headers=kept, content=request.body)
        headers = {name: value for name, value in got.headers.items() if name not in ("content-length", "date")}
        headers, body = change(request.path, headers, got.content)
        return got.status_code, headers, body

    return serve(forward).url


def no_parameters(_path: str, headers: dict, body: bytes) -> tuple[dict, bytes]:
    """Take away what a server says of itself."""
    if body.startswith(b'{"name"'):
        body = json.dumps({key: value for key, value in json.loads(body).items() if key != "parameters"}).encode()
    return headers, body


def test_a_server_of_the_release_passes_every_way(server, shared_home):
    """The right model must not be refused: raw and as tensors, alone, at once and in one request."""
    found = validated(shared_home, *server)

    assert found.verdict is Verdict.PASSED, found.summary
    assert [each["way"] for each in found.measured["asked"]] == WAYS
    assert [each["answers"] for each in found.measured["asked"]] == [3, 3, 16, 16, 3]
    assert found.measured["endpoint"]["variant"] == "reference"
    assert found.measured["endpoint"]["bundle"] == found.measured["released"]["bundle"]


def test_the_command_keeps_signed_evidence(server, shared_home, tmp_path, monkeypatch):
    """``--out`` is what was found, and an envelope that others can verify."""
    monkeypatch.setenv("LIGHTSHIP_HOME", str(shared_home.root))
    monkeypatch.setenv("LIGHTSHIP_KEY", server[1])
    out = tmp_path / "endpoint.json"
    done = CliRunner().invoke(
        cli, ["validate", "shades:1", "--endpoint", server[0], "--out", str(out), "--json", "--timeout", "200"]
    )

    assert done.exit_code == 0, done.output
    said, kept = json.loads(done.stdout), json.loads(out.read_text())
    assert said["verdict"] == kept["verdict"] == "passed"
    evidence, signer = open_evidence(kept["signed"].encode(), trust=TrustStore(shared_home.trust))
    assert signer.local
    assert evidence.check == "endpoint"
    assert evidence.measured["asked"] == said["measured"]["asked"]


def test_another_version_is_named(server, shared_home, tmp_path):
    """Clients would get answers of version 1 while 2 is what production means here, or was asked for by number."""
    import shutil

    home = Home(tmp_path / "home")
    shutil.copytree(shared_home.root, home.root)
    release(home, config={**TASK.config(), "labels": ["night", "dusk", "day"]})
    from lightship.registry.database import open_database

    with open_database(home) as registry:
        registry.promote("shades", 2, who="ada")

    for reference in ("shades", "shades:2"):
        found = validated(home, *server, reference)
        assert found.verdict is Verdict.FAILED
        assert "serves shades in version 1, not 2" in found.summary
    assert validated(home, *server, "shades:1").verdict is Verdict.PASSED


def test_an_answer_of_another_version_is_noticed(server, shared_home, serve):
    """A balancer that mixes servers: each says the right thing of itself, and some answers are of another version."""

    def change(path: str, headers: dict, body: bytes) -> tuple[dict, bytes]:
        return headers, body.replace(b'"version":1', b'"version":7') if path.startswith("/predict") else body

    found = validated(shared_home, proxy(serve, server[0], change), server[1])

    assert found.verdict is Verdict.FAILED
    assert "golden/0.png: is answered by version 7, not 1 (raw, alone; 3 of 3" in found.summary


def test_a_variant_that_fell_back_is_named(tmp_path):
    """Its answers are right, those of the reference; but not what was released is what answers."""
    home = Home(tmp_path / "home")
    variant = Variant("fast", "onnxruntime", "variants/fast/model.onnx", "fp32", {"threads": 1}, ())
    release(home, proposed=variant, golden=logits_of(EXAMPLES) + 1)
    with start_server(home, "shades", log=tmp_path / "log") as (url, key_file):
        found = validated(home, url, key_file.read_text().strip())

    assert found.verdict is Verdict.FAILED
    assert (
        "The variant 'reference' answers in place of 'fast', for 'fast' does not work on its machine" in found.summary
    )
    assert [each["wrong"] for each in found.measured["asked"]] == [0, 0, 0, 0, 0]


def test_a_server_that_hides_its_variant_is_found_by_its_answers(tmp_path, serve):
    """Nothing is said of the fallback, so the answers are held against the release's variant, and resemble another."""
    home = Home(tmp_path / "home")
    variant = Variant("fast", "onnxruntime", "variants/fast/model.onnx", "fp32", {"threads": 1}, ())
    release(home, proposed=variant, golden=logits_of(EXAMPLES) + 1)
    with start_server(home, "shades", log=tmp_path / "log") as (url, key_file):
        found = validated(home, proxy(serve, url, no_parameters), key_file.read_text().strip())

    assert found.verdict is Verdict.FAILED
    assert "golden/0.png: 'logits' differs by 1, allowed 0.0001; first at [0]" in found.summary
    assert "The answers are those of the variant 'reference'." in found.summary


@pytest.mark.parametrize("told", [True, False], ids=["told", "not-told"])
def test_another_preprocessing_is_found_by_raw_inputs(shared_home, tmp_path, serve, told):
    """The same graph, re-signed with another mean: tensors are answered right, images are not."""
    home = Home(tmp_path / "other")
    skewed = [(0.5 - 0.4) / 0.5 + np.mean(TASK.encode(image)["image"]) for image in EXAMPLES]
    golden = (np.array(skewed)[:, None] * [-4.0, 0.0, 4.0] + [0, 0.5, 0]).astype(np.float32)
    release(home, config=OTHER_MEAN, golden=golden)
    with start_server(home, "shades", log=tmp_path / "log") as (url, key_file):
        found = validated(shared_home, url if told else proxy(serve, url, no_parameters), key_file.read_text().strip())

    assert found.verdict is Verdict.FAILED
    assert ("is another bundle" in found.summary) is told
    assert "golden/1.png: 'probabilities' differs by" in found.summary or "golden/0.png" in found.summary
    assert "its preprocessing is not what was released" in found.summary
    assert [bool(each["wrong"]) for each in found.measured["asked"]] == [False, True, False, True, False]


@pytest.mark.parametrize("door", ["infer", "predict"])
def test_a_proxy_that_changes_values_is_found(server, shared_home, serve, door):
    """One value of one answer, a little: the input, the output and the place are named."""

    def change(path: str, headers: dict, body: bytes) -> tuple[dict, bytes]:
        if path.endswith("/infer") and door == "infer":
            length = int(headers["inference-header-content-length"])
            values = np.frombuffer(body[length:], "<f4").copy()
            values[2] += 0.01
            return headers, body[:length] + values.tobytes()
        if path.startswith("/predict") and door == "predict":
            value = json.loads(body)
            value["probabilities"]["dark"] += 0.001
            return headers, json.dumps(value).encode()
        return headers, body

    found = validated(shared_home, proxy(serve, server[0], change), server[1])

    assert found.verdict is Verdict.FAILED
    where = "'logits' differs by 0.01" if door == "infer" else "'probabilities' differs by 0.001 for 'dark'"
    assert f"Golden input golden/0.png: {where}" in found.summary
    assert ("first at [2]" in found.summary) is (door == "infer")
    assert found.measured["first_difference"]["input"] == "golden/0.png"


def test_over_grpc_every_way_is_asked_too(shared_home, tmp_path, monkeypatch):
    """The right server passes by the command; a key is needed, and goes unencrypted to this machine alone."""
    monkeypatch.setenv("LIGHTSHIP_HOME", str(shared_home.root))
    with start_server(shared_home, "shades", log=tmp_path / "log", grpc=True) as (url, key_file):
        command = ["validate", "shades:1", "--endpoint", url, "--key-file", str(key_file), "--json"]
        done = CliRunner().invoke(cli, command)
        with pytest.raises(Unauthenticated, match="LIGHTSHIP_KEY"):
            validate_endpoint(shared_home, "shades", GrpcClient(url, key="wrong"))
    with pytest.raises(Unavailable, match="reached"):
        validate_endpoint(shared_home, "shades", GrpcClient(url, key="gone", timeout_s=5))

    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [each["way"].replace("32", "8") for each in found["measured"]["asked"]] == WAYS
    assert [each["answers"] for each in found["measured"]["asked"]] == [3, 3, 64, 64, 3]
    assert found["method"]["tensors"].startswith("V2 over gRPC")
    with pytest.raises(InvalidInput, match=r"would go to models\.example"):
        GrpcClient("grpc://models.example:8001", key="k")
    with pytest.raises(InvalidInput, match=r"such as grpc://127\.0\.0\.1:8001"):
        GrpcClient("grpc://models.example", key="k")


def test_over_grpc_another_preprocessing_is_found(shared_home, tmp_path):
    """The same graph behind another mean: tensors are answered right, images are not."""
    home = Home(tmp_path / "other")
    skewed = [(0.5 - 0.4) / 0.5 + np.mean(TASK.encode(image)["image"]) for image in EXAMPLES]
    golden = (np.array(skewed)[:, None] * [-4.0, 0.0, 4.0] + [0, 0.5, 0]).astype(np.float32)
    release(home, config=OTHER_MEAN, golden=golden)
    with start_server(home, "shades", log=tmp_path / "log", grpc=True) as (url, key_file):
        client = GrpcClient(url, key=key_file.read_text().strip())
        found = validate_endpoint(shared_home, "shades", client, together=8)

    assert found.verdict is Verdict.FAILED
    assert "its preprocessing is not what was released" in found.summary
    assert [bool(each["wrong"]) for each in found.measured["asked"]] == [False, True, False, True, False]


def test_what_is_no_answer_is_an_error_of_its_class(server, shared_home, free_url):
    """A wrong key or a server that is not there says nothing about the model."""
    with pytest.raises(Unauthenticated):
        validated(shared_home, server[0], "wrong")
    with pytest.raises(Unavailable, match="reached"):
        validate_endpoint(shared_home, "shades", AsyncClient(free_url, retries=0))


def test_the_command_ends_with_6_and_prints_what_it_found(server, shared_home, serve, monkeypatch):
    """Also when it refuses, ``--json`` prints its object: what is wrong is what one came for."""

    def change(path: str, headers: dict, body: bytes) -> tuple[dict, bytes]:
        return headers, body.replace(b'"versions":["1"]', b'"versions":["7"]')

    monkeypatch.setenv("LIGHTSHIP_HOME", str(shared_home.root))
    monkeypatch.setenv("LIGHTSHIP_KEY", server[1])
    url = proxy(serve, server[0], change)
    done = CliRunner().invoke(cli, ["validate", "shades", "--endpoint", url, "--json", "--timeout", "200"])

    assert json.loads(done.stdout)["measured"]["endpoint"]["versions"] == ["7"]
    assert status_of(done.exception).exit_code == 6
    assert "serves shades in version 7, not 1" in str(done.exception)
