"""A running server follows the registry: promote, rollback, broken versions, a registry that goes away."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lightship.data.home import Home
from lightship.errors import BundleRefused
from lightship.registry.database import open_database
from lightship.serve.access import KeyFile, Role
from lightship.tasks.image_pixels import png_bytes

DEADLINE_S = 30.0


@pytest.fixture
def png(image) -> bytes:
    """Return an image file."""
    return png_bytes(image(3)[:, :, None])


@pytest.fixture
def versions(tmp_path, release_model) -> Home:
    """Return a home with two versions of ``digits`` that answer differently."""
    made = Home(tmp_path / "home").ensure()
    release_model(made, "digits")
    release_model(made, "digits", mean="0.5", golden_mean="0.5")
    return made


def promote(home: Home, version: int, alias: str = "production") -> None:
    """Move an alias, as the command does."""
    with open_database(home) as registry:
        registry.promote("digits", version, alias, who="test", why="test", accept_unproven=True)


def rollback(home: Home) -> None:
    """Move it back."""
    with open_database(home) as registry:
        registry.rollback("digits", who="test", why="test")


def state(server) -> dict:
    """Return what the control plane says."""
    return httpx.get(f"{server.control_url}/models").json()


def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> float:
    """Wait until a condition of another process holds; return the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < deadline_s, "it did not come true in time"
        time.sleep(0.01)
    return time.monotonic() - started


class Traffic:
    """Clients that ask all the time and remember (version, label's probability) and what failed."""

    def __init__(self, url: str, png: bytes, clients: int = 4) -> None:
        self.answers: list[tuple[int, float]] = []
        self.failed: list[str] = []
        self._url, self._png = url, png
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=DEADLINE_S) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post("/predict/digits", content=self._png)
                except httpx.HTTPError as exc:
                    self.failed.append(repr(exc))
                    continue
                if answer.status_code == 200:
                    said = answer.json()
                    self.answers.append((said["version"], round(said["probability"], 4)))
                else:
                    self.failed.append(f"{answer.status_code} {answer.text}")


@pytest.fixture
def serve(launch, versions) -> Iterator[Callable[..., object]]:
    """Return a function that serves ``versions`` without keys; its servers end with the test."""
    started = []

    def go(*references: str):
        server = launch(versions, *(references or ("digits",)), "--auth", "none")
        started.append(server)
        return server

    yield go
    for server in started:
        server.process.terminate()
        assert server.process.wait(DEADLINE_S) == 0


def test_promote_and_rollback_under_load_lose_nothing(serve, versions, png):
    """Each answer is that of the version that it names; the rollback answers within a second."""
    server = serve()
    with Traffic(server.url, png) as traffic:
        until(lambda: len(traffic.answers) > 50)
        promote(versions, 2)
        until(lambda: traffic.answers[-1][0] == 2)
        until(lambda: any(model["state"] == "parked" for model in state(server)["models"]))
        rollback(versions)
        back_s = until(lambda: traffic.answers[-1][0] == 1)
        promote(versions, 2)
        until(lambda: traffic.answers[-1][0] == 2)

    assert traffic.failed == []
    assert back_s < 1.0
    assert len(set(traffic.answers)) == 2  # one probability a version
    metrics = httpx.get(f"{server.control_url}/metrics").text
    assert "lightship_reloads_total 3.0" in metrics


def test_a_version_that_fails_changes_nothing(serve, versions, png, release_model):
    """The old one goes on; the reason is in the state within a second of the failure; the next move heals it."""
    release_model(versions, "digits", mean="0.2", golden_mean="0.4")  # version 3 gets its golden examples wrong
    server = serve()
    with Traffic(server.url, png, clients=2) as traffic:
        promote(versions, 3)
        until(lambda: state(server)["references"][0]["failure"] is not None)
        failure = state(server)["references"][0]["failure"]
        promote(versions, 2)
        until(lambda: traffic.answers[-1][0] == 2)

    assert failure["version"] == 3
    assert "golden input golden/inputs/0.png" in failure["reason"]
    assert traffic.failed == []
    assert {version for version, _ in traffic.answers} == {1, 2}
    assert state(server)["references"][0]["failure"] is None
    assert "lightship_failed_reloads_total 1.0" in httpx.get(f"{server.control_url}/metrics").text


def test_damaged_bytes_are_not_taken_over(serve, versions, png):
    """A blob with a flipped bit is refused by name, and the server goes on."""
    server = serve()
    blobs = [path for path in (versions.store / "blobs" / "sha256").rglob("*") if path.is_file()]
    graph = max(blobs, key=lambda path: path.stat().st_size)
    graph.chmod(0o644)
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    promote(versions, 2)

    until(lambda: state(server)["references"][0]["failure"] is not None)

    assert "variants/reference/model.onnx" in state(server)["references"][0]["failure"]["reason"]
    answer = httpx.post(f"{server.url}/predict/digits", content=png).json()
    assert answer["version"] == 1


def test_the_registry_may_go_and_come_back(serve, versions, png):
    """The server says that it is degraded, answers all the same, and follows again by itself."""
    server = serve()
    away = versions.registry.with_name("away.db")
    with Traffic(server.url, png, clients=2) as traffic:
        versions.registry.rename(away)
        until(lambda: state(server)["degraded"] is not None)
        versions.registry.write_bytes(b"no database")
        until(lambda: "damaged" in (state(server)["degraded"] or ""))
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        versions.registry.unlink()
        away.rename(versions.registry)
        until(lambda: state(server)["degraded"] is None, 10.0)
        promote(versions, 2)
        until(lambda: traffic.answers[-1][0] == 2)

    assert traffic.failed == []


@pytest.fixture
def locked(launch, versions) -> Iterator[tuple[object, Callable[..., httpx.Response]]]:
    """Return a server of ``versions`` with keys, and a function that asks its control plane with a role's key."""
    keys = {role: KeyFile(versions.keys).create(role)[1] for role in Role}
    server = launch(versions, "digits")

    def ask(method: str, path: str, role: Role | None = Role.ADMIN) -> httpx.Response:
        headers = {} if role is None else {"authorization": f"Bearer {keys[role]}"}
        return httpx.request(method, f"{server.control_url}{path}", headers=headers, timeout=DEADLINE_S)

    yield server, ask
    server.process.terminate()
    assert server.process.wait(DEADLINE_S) == 0


def test_the_way_back_without_the_registry(locked, versions):
    """The version before answers again; the alias is followed again when it has pointed somewhere else."""
    _, ask = locked
    back = "/models/digits/rollback"

    def said() -> dict:
        return ask("GET", "/models").json()

    promote(versions, 2)
    until(lambda: any(one["state"] == "parked" for one in said()["models"]))
    assert ask("POST", back).status_code == 409  # while the registry can be read, it says what is served
    away = versions.registry.with_name("away.db")
    versions.registry.rename(away)
    until(lambda: said()["degraded"])

    refused = [ask("POST", back, role).status_code for role in (None, Role.READ, Role.INFER)]
    assert refused == [401, 403, 403]
    assert ask("POST", "/models/nothing/rollback").status_code == 404
    done = ask("POST", back)
    assert (done.status_code, done.json()) == (200, {"name": "digits", "version": 1})
    assert said()["references"][0]["version"] == 1
    again = ask("POST", back)
    assert (again.status_code, "not held" in again.json()["error"]) == (503, True)

    away.rename(versions.registry)
    until(lambda: said()["degraded"] is None)
    time.sleep(0.6)  # two looks
    reference = said()["references"][0]
    assert (reference["version"], reference["held_off"]) == (1, 2)
    rollback(versions)
    until(lambda: said()["references"][0]["held_off"] is None)
    promote(versions, 2)
    until(lambda: said()["references"][0]["version"] == 2)


def test_the_way_back_asks_again_who_is_trusted(locked, versions):
    """A signer that is trusted no longer does not come back this way either."""
    _, ask = locked
    promote(versions, 2)
    until(lambda: any(one["state"] == "parked" for one in ask("GET", "/models").json()["models"]))
    for path in versions.trust.iterdir():
        path.unlink()
    versions.registry.write_bytes(b"no database")
    until(lambda: ask("GET", "/models").json()["degraded"])

    assert ask("POST", "/models/digits/rollback").status_code == 409
    assert ask("GET", "/models").json()["references"][0]["version"] == 2


def test_without_keys_nothing_goes_back(serve):
    """Whoever reaches the port could do it."""
    assert httpx.post(f"{serve().control_url}/models/digits/rollback").status_code == 403


def test_two_references_to_one_version_share_a_worker(serve, versions):
    """And part when one of them moves."""
    promote(versions, 1, "staging")
    server = serve("digits", "digits@staging", "digits:1")
    assert len(state(server)["models"]) == 1

    promote(versions, 2, "staging")
    until(lambda: state(server)["references"][1]["version"] == 2)

    assert [reference["version"] for reference in state(server)["references"]] == [1, 2, 1]
    workers = {model["worker_pids"][0] for model in state(server)["models"]}
    assert len(workers) == 2


def test_the_latest_target_wins(serve, versions, png):
    """Aliases that move faster than versions load end where they point last, with one old worker kept at most."""
    server = serve()
    with Traffic(server.url, png, clients=2) as traffic:
        for _ in range(6):
            promote(versions, 2)
            promote(versions, 1)
        promote(versions, 2)
        until(lambda: traffic.answers[-1][0] == 2)
        until(lambda: len(workers_of(server.process.pid)) <= 2)

    assert traffic.failed == []


def workers_of(pid: int) -> list[int]:
    """Return the processes that a server has started and that live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(after[1]) == pid and after[0] != "Z":
                found.append(int(entry.name))
    return found


def test_a_worker_is_as_quick_after_a_reload_as_before(serve, versions, png):
    """It loads with a lower priority and does not stay that way."""
    server = serve()
    promote(versions, 2)
    until(lambda: state(server)["references"][0]["version"] == 2)
    pid = next(model["worker_pids"][0] for model in state(server)["models"] if model["version"] == 2)

    nice = {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}

    assert nice == {os.getpriority(os.PRIO_PROCESS, 0)}


@pytest.mark.parametrize("door", ["raw", "v2"])
def test_a_request_whose_body_is_still_coming_is_answered_by_the_version_that_let_it_in(
    launch, versions, connect, png, door
):
    """Two versions on, and without a worker kept for a rollback."""
    server = launch(versions, "digits", "--auth", "none", "--no-keep-previous")
    until(lambda: state(server)["models"][0]["version"] == 1)
    if door == "raw":
        target, body = "/predict/digits", png
    else:
        values = ",".join(["0"] * 784)
        target = "/v2/models/digits/infer"
        body = f'{{"inputs":[{{"name":"image","shape":[1,1,28,28],"datatype":"FP32","data":[{values}]}}]}}'.encode()
    sock = connect(server.address)
    kind = "image/png" if door == "raw" else "application/json"
    head = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body[:20])
    time.sleep(0.3)

    for version in (2, 1, 2):
        promote(versions, version)
        until(lambda wanted=version: [one["version"] for one in state(server)["references"]] == [wanted])
    sock.sendall(body[20:])
    answer = sock.recv(65_536).decode()
    server.process.terminate()

    assert answer.startswith("HTTP/1.1 200"), answer
    assert ('"version":1' in answer) if door == "raw" else ('"model_version":"1"' in answer)
    assert server.process.wait(DEADLINE_S) == 0


def test_a_rollback_to_a_warm_worker_asks_again_who_is_trusted(serve, versions):
    """A signer that is trusted no longer does not come back because its worker is still there."""
    server = serve()
    promote(versions, 2)
    until(lambda: [one["version"] for one in state(server)["references"]] == [2])
    until(lambda: any(one["state"] == "parked" for one in state(server)["models"]))
    for path in versions.trust.iterdir():
        path.unlink()

    with pytest.raises(BundleRefused, match="not trusted"):
        rollback(versions)
    with contextlib.closing(sqlite3.connect(versions.registry)) as connection:  # somebody who may write the file
        connection.execute("UPDATE aliases SET version = 1")
        connection.commit()

    until(lambda: bool(state(server)["degraded"]))
    assert state(server)["references"][0]["version"] == 2


def test_an_alias_that_was_moved_without_a_key_is_not_followed(serve, versions):
    """Version 1 is released and signed, but nobody has signed that production is to be it again."""
    server = serve()
    promote(versions, 2)
    until(lambda: [one["version"] for one in state(server)["references"]] == [2])
    with contextlib.closing(sqlite3.connect(versions.registry)) as connection:
        connection.execute("UPDATE aliases SET version = 1")
        connection.commit()

    until(lambda: "its last signed move made it version 2" in (state(server)["degraded"] or ""))
    assert state(server)["references"][0]["version"] == 2
    promote(versions, 1)
    until(lambda: [one["version"] for one in state(server)["references"]] == [1])
    until(lambda: not state(server)["degraded"])
