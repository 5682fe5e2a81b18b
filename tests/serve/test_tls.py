"""TLS of the data plane: real certificates of a small authority, real servers, http and gRPC clients."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lightship.apply.client import Client
from lightship.cli.main import cli
from lightship.errors import InvalidInput, LightshipError
from lightship.serve.access import KeyFile
from lightship.serve.limits import Clocks, Limits
from lightship.serve.server import Server, ServerOptions
from lightship.serve.source import read_source
from lightship.serve.tls import Certificate
from lightship.tasks.image_pixels import png_bytes

DEADLINE_S = 30.0
QUICK = Clocks(lame_s=0.2, drain_s=DEADLINE_S, stopped_s=DEADLINE_S, silent_s=5 * DEADLINE_S)


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
        certificate = self._sign(self._name, self._key.public_key(), authority=True)
        self.file = folder / "authority.pem"
        self.file.write_bytes(certificate)

    def issue(self, name: str = "server", *, days: int = 1) -> tuple[Path, Path]:
        """Write a certificate and its key; return their files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        cert_file, key_file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        cert_file.write_bytes(self._sign(subject, key.public_key(), days=days))
        key_file.touch(mode=0o600)
        key_file.write_bytes(_pem(key))
        return cert_file, key_file

    def client(self) -> ssl.SSLContext:
        """Return a context that trusts this authority alone."""
        return ssl.create_default_context(cafile=str(self.file))

    def _sign(self, subject: x509.Name, public: ec.EllipticCurvePublicKey, *, authority: bool = False, days: int = 1):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")]),
                critical=False,
            )
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def files(authority) -> tuple[Path, Path]:
    """Return a certificate and its key."""
    return authority.issue()


@pytest.fixture(scope="module")
def door(home, launch, files):
    """Return a server that speaks https and gRPC over TLS."""
    options = ("--tls-cert", str(files[0]), "--tls-key", str(files[1]), "--grpc-port", "0", "--auth", "none")
    return launch(home, "digits", *options, "--limit", "stopped_s=30", "--limit", "silent_s=150")


@contextlib.asynccontextmanager
async def serving(home, files: tuple[Path, Path], *, clocks: Clocks = QUICK, **options) -> AsyncIterator[Server]:
    """Run a server in this process over TLS."""
    given = ServerOptions(port=0, clocks=clocks, certificate=Certificate(*files), depth=1, **options)
    async with Server([read_source(home, "digits")], given) as server:
        yield server


@pytest.fixture
def png(image) -> bytes:
    """Return an image file."""
    return png_bytes(image(3)[:, :, None])


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition of the server holds, or fail at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the state inside a server and a process has no event
            await asyncio.sleep(0.005)


def _handshake(address: tuple[str, int], context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(address, timeout=DEADLINE_S), server_hostname="127.0.0.1")


# Clients


def test_our_client_and_httpx_speak_https_with_the_authoritys_file(door, authority, png):
    """And refuse without it: the certificate is checked."""
    assert door.url.startswith("https://")
    with Client(door.url, verify=authority.client()) as client:
        assert client.predict("digits", png).label in "0123456789"
        assert client.metadata("digits").inputs
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(door.url + "/livez")
    with Client(door.url, retries=0) as stranger, pytest.raises(LightshipError):
        stranger.predict("digits", png)


def test_the_command_asks_over_https(door, authority, png, tmp_path):
    """`lightship predict --url https://… --ca-file …`; another file is refused."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(png)
    arguments = ["predict", "digits", str(photo), "--url", door.url, "--json"]

    done = CliRunner().invoke(cli, [*arguments, "--ca-file", str(authority.file)])

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["label"] in "0123456789"
    wrong = CliRunner().invoke(cli, [*arguments, "--ca-file", str(photo)])
    assert wrong.exit_code == 2
    assert "certificates in PEM form" in wrong.output


def test_the_public_clients_get_the_engines_answers(door, authority, runner):
    """tritonclient, over https and over gRPC with TLS."""
    array = np.random.default_rng(1).normal(size=(9, 1, 28, 28)).astype(np.float32)
    direct = np.concatenate([runner.run({"image": array[at : at + 8]})["logits"] for at in (0, 8)])
    host, port = door.address
    over_http = tritonclient.http.InferenceServerClient(
        f"{host}:{port}", ssl=True, ssl_context_factory=authority.client
    )
    over_grpc = tritonclient.grpc.InferenceServerClient(door.grpc_url, ssl=True, root_certificates=str(authority.file))
    for module, client in ((tritonclient.http, over_http), (tritonclient.grpc, over_grpc)):
        tensor = module.InferInput("image", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        assert np.allclose(client.infer("digits", [tensor]).as_numpy("logits"), direct, atol=1e-5)
        client.close()


def test_plain_text_gets_no_answer_at_a_door_with_tls(door):
    """Neither http nor gRPC; the server goes on."""
    with pytest.raises(httpx.TransportError):
        httpx.get(door.url.replace("https", "http") + "/livez")
    with grpc.insecure_channel(door.grpc_url) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=5)
    assert raised.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("which", ["http", "grpc"])
def test_old_versions_and_weak_ciphers_are_refused(door, authority, which):
    """TLS 1.2 with forward secrecy, or 1.3."""
    host, _, port = door.grpc_url.rpartition(":")
    address = door.address if which == "http" else (host, int(port))

    def context() -> ssl.SSLContext:
        made = authority.client()
        made.set_alpn_protocols(["h2" if which == "grpc" else "http/1.1"])
        return made

    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        good = context()
        good.minimum_version = good.maximum_version = version
        with _handshake(address, good) as sock:
            assert sock.version() == version.name.replace("v1_", "v1.")
    weak = context()
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _handshake(address, weak)
    old = context()
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _handshake(address, old)


# Files


def _refused(home, *arguments: str) -> str:
    """Return what the command says when it refuses the arguments; nothing may have been loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "lightship.cli.main", "serve", "digits", "--port", "0", *arguments],
        check=False,
        env={**os.environ, "LIGHTSHIP_HOME": str(home.root)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2, done.stderr
    assert "is ready" not in done.stderr
    return " ".join(done.stderr.split())


def test_the_command_says_what_is_wrong_before_models_are_loaded(home, files, tmp_path):
    """Exit code 2."""
    assert "go together" in _refused(home, "--tls-cert", str(files[0]))
    assert "cannot be read: No such file" in _refused(home, "--tls-cert", str(files[0]), "--tls-key", "/none")
    assert "plain text" in _refused(home, "--host", "0.0.0.0")


def test_files_that_are_wrong_are_refused_by_name(authority, files, tmp_path):
    """The key of another certificate, no PEM, a locked key, a key for all to read, an unreadable one."""
    cert, key = files
    other = authority.issue("other")
    with pytest.raises(InvalidInput, match="is not that of the certificate"):
        Certificate(cert, other[1])
    with pytest.raises(InvalidInput, match="certificates in PEM form"):
        Certificate(key, key)
    for name, content in (
        ("empty", b""),
        ("noise", b"\xff" * 100),
        ("cut", key.read_bytes()[:80]),
        ("other", cert.read_bytes()),
    ):
        broken = tmp_path / name
        broken.touch(mode=0o600)
        broken.write_bytes(content)
        with pytest.raises(InvalidInput, match=r"key file .*one private key in PEM form"):
            Certificate(cert, broken)
    locked = tmp_path / "locked.key"
    locked.touch(mode=0o600)
    locked.write_bytes(_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    with pytest.raises(InvalidInput, match="locked with a password"):
        Certificate(cert, locked)
    for_all = tmp_path / "all.key"
    for_all.write_bytes(key.read_bytes())
    for_all.chmod(0o644)
    with pytest.raises(InvalidInput, match=r"mode is 0644\. Run: chmod o="):
        Certificate(cert, for_all)
    for_all.chmod(0o640)  # a group for keys is a usual thing
    assert Certificate(cert, for_all)
    with pytest.raises(InvalidInput, match="cannot be read: Is a directory"):
        Certificate(tmp_path, key)


def test_another_address_than_loopback_needs_tls_or_a_word(home, files):
    """D-01: keys must not cross a network in plain text by accident."""
    keys = KeyFile(home.keys)
    with pytest.raises(InvalidInput, match="--tls-cert and --tls-key"):
        ServerOptions(host="0.0.0.0", key_file=keys)
    assert ServerOptions(host="0.0.0.0", key_file=keys, plain_text=True)
    assert ServerOptions(host="0.0.0.0", key_file=keys, certificate=Certificate(*files))
    with pytest.raises(InvalidInput, match="loopback"):
        ServerOptions(host="0.0.0.0", certificate=Certificate(*files))


def _serial(address: tuple[str, int], context: ssl.SSLContext) -> int:
    with _handshake(address, context) as sock:
        return x509.load_der_x509_certificate(sock.getpeercert(binary_form=True) or b"").serial_number


def test_a_renewed_certificate_is_used_without_a_restart(home, launch, authority):
    """By both doors, from the next connection on; a wrong pair in between changes nothing."""
    cert, key = authority.issue("renewed")
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--grpc-port", "0", "--auth", "none")
    running = launch(home, "digits", *options)
    host, _, port = running.grpc_url.rpartition(":")
    h2 = authority.client()
    h2.set_alpn_protocols(["h2"])
    doors = ((running.address, authority.client()), ((host, int(port)), h2))
    before = x509.load_pem_x509_certificate(cert.read_bytes()).serial_number
    assert [_serial(*door) for door in doors] == [before, before]
    new_cert, new_key = authority.issue("next")

    cert.write_bytes(new_cert.read_bytes())  # its key is not there yet
    time.sleep(1.1)
    assert [_serial(*door) for door in doors] == [before, before]
    new_key.replace(key)
    time.sleep(1.1)
    after = x509.load_pem_x509_certificate(cert.read_bytes()).serial_number
    assert after != before
    assert [_serial(*door) for door in doors] == [after, after]
    assert "the last good certificate goes on" in running.log.read_text()


# Connections


async def test_a_handshake_that_never_ends_is_cut_off(home, files, authority):
    """Within the clock of a head, from the connection on: with no byte, with half a hello."""
    clocks = dataclasses.replace(QUICK, head_s=0.5)
    async with serving(home, files, clocks=clocks, grpc_port=0) as server:
        for port in (server.port, server.grpc_port):
            for start in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                began = time.monotonic()
                writer.write(start)
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(DEADLINE_S):
                        await reader.read()
                assert 0.3 < time.monotonic() - began < 3.0
                writer.close()


async def _still_open(socks: list[socket.socket]) -> int:
    """Return how many of these connections the other side has not closed."""
    return sum([await asyncio.to_thread(_is_open, sock) for sock in socks])


def _is_open(sock: socket.socket) -> bool:
    sock.settimeout(0.01)
    try:
        return sock.recv(4096) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


async def test_handshakes_count_as_connections(home, files, authority):
    """Far more than are allowed begin one and stop; so many are held, and who asks meanwhile is answered."""
    limits, clocks = Limits(connections=8), dataclasses.replace(QUICK, chance_s=0.1)
    async with serving(home, files, clocks=clocks, limits=limits) as server:
        url = f"https://127.0.0.1:{server.port}/livez"
        with contextlib.ExitStack() as stack:
            kept = await asyncio.to_thread(_handshake, (server.host, server.port), authority.client())
            stack.enter_context(kept)
            for _ in range(5):
                slow = [socket.create_connection((server.host, server.port)) for _ in range(20)]
                for index, sock in enumerate(slow):
                    stack.enter_context(sock)
                    if index % 2:
                        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
                await asyncio.sleep(0.2)
                most = len(server.front.connections) + server._listener.handshakes
                assert most <= 8
                assert await _still_open(slow) <= 8
                async with httpx.AsyncClient(verify=authority.client(), timeout=DEADLINE_S) as client:
                    assert (await client.get(url)).status_code == 200
        await until(lambda: server._listener.handshakes == 0)


async def test_grpc_connections_count_from_the_handshake_on(home, files, authority):
    """Silent ones and half a hello hold no more places than there are; when they end, calls are taken again."""
    async with serving(home, files, grpc_port=0, limits=Limits(connections=8)) as server:
        address = (server.host, server.grpc_port)
        slow = [socket.create_connection(address) for _ in range(30)]
        for sock in slow[::2]:
            with contextlib.suppress(OSError):  # it may be closed already
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        async with asyncio.timeout(DEADLINE_S):
            while (held := await _still_open(slow)) > 8:  # noqa: ASYNC110 - the kernel has no event for it
                await asyncio.sleep(0.05)
        for sock in slow:
            sock.close()
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            await asyncio.to_thread(live, b"", timeout=DEADLINE_S, wait_for_ready=True)

    assert held > 0


async def test_a_stop_does_not_wait_for_handshakes(home, files):
    """They are broken off when all that was accepted has been answered."""
    clocks = dataclasses.replace(QUICK, lame_s=0.01)
    async with serving(home, files, clocks=clocks) as server:
        slow = [socket.create_connection((server.host, server.port)) for _ in range(4)]
        await until(lambda: server._listener.handshakes == 4)
        listener = server._listener
        began = time.monotonic()
    await until(lambda: listener.handshakes == 0)

    assert time.monotonic() - began < 5
    for sock in slow:
        sock.close()


async def test_after_the_handshake_the_clock_of_a_head_runs(home, files, authority):
    """A client that says nothing more is closed too."""
    async with serving(home, files, clocks=dataclasses.replace(QUICK, head_s=0.5)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=authority.client())
        began = time.monotonic()
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
        assert time.monotonic() - began < 3.0
        writer.close()


def test_the_refusal_of_a_large_body_arrives(home, launch, files, authority):
    """The connection closes over an unread body; the answer must not be lost with it."""
    running = launch(home, "digits", "--tls-cert", str(files[0]), "--tls-key", str(files[1]))
    head = b"POST /predict/digits HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n"
    for _ in range(10):
        with _handshake(running.address, authority.client()) as sock:
            with contextlib.suppress(OSError):  # it may close while we write
                sock.sendall(head + b"x" * 200_000)
            assert sock.recv(65_536).startswith(b"HTTP/1.1 401 ")


def test_a_client_that_ends_its_side_leaves_nothing_behind(door, authority, png):
    """TLS has no half-close here: the end of one side is the end. Nothing but JSON is in the log."""
    state = httpx.get(door.control_url + "/models").json()["models"][0]
    head = b"POST /predict/digits HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(png)
    with stopped(state["worker_pids"][0]):
        for end in (lambda sock: sock.unwrap(), lambda sock: sock.shutdown(socket.SHUT_WR)):
            sock = _handshake(door.address, authority.client())
            sock.settimeout(2)
            sock.sendall(head + png)
            time.sleep(0.2)
            with contextlib.suppress(OSError):
                end(sock)
            sock.close()
        deadline = time.monotonic() + DEADLINE_S
        while httpx.get(door.control_url + "/models").json()["models"][0]["waiting"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    for line in door.log.read_text().splitlines():
        json.loads(line)


async def test_a_stop_answers_what_was_accepted(home, files, authority, png):
    """One request under way, and connections that the kernel took but nobody has greeted yet."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(home, files, grpc_port=0))
        (model,) = server.models
        client = await stack.enter_async_context(httpx.AsyncClient(verify=authority.client(), timeout=DEADLINE_S))
        url = f"https://127.0.0.1:{server.port}"
        with stopped(model.worker_pids[0]):
            first = asyncio.ensure_future(client.post(f"{url}/predict/digits", content=png))
            await until(lambda: model.running == 1)
            server.stop()
            late = [asyncio.ensure_future(client.post(f"{url}/predict/digits", content=png)) for _ in range(20)]
            await asyncio.sleep(0.1)
        assert (await first).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*late)} == {200}


async def test_connections_made_just_before_the_stop_get_their_handshake(home, files, authority):
    """They wait in the kernel while the loop is busy; closing the listening socket would reset them."""
    async with serving(home, files, clocks=dataclasses.replace(QUICK, lame_s=0.01)) as server:
        waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]  # nobody accepts meanwhile
        server.stop()
        stopping = asyncio.ensure_future(server._drain())

        def ask(sock: socket.socket) -> bytes:
            sock.settimeout(DEADLINE_S)
            with authority.client().wrap_socket(sock, server_hostname="127.0.0.1") as secure:
                secure.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                return secure.recv(65_536)

        answers = await asyncio.gather(*(asyncio.to_thread(ask, sock) for sock in waiting))
        assert all(answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 503 ")) for answer in answers)
        await stopping
