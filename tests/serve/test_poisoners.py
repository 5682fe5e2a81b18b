"""A key whose inputs kill the worker, again and again, is kept away; the other keys go on."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from tests.serve.test_workers import deadly, png_of

from lightship.data.home import Home
from lightship.errors import Overloaded
from lightship.serve import poisoners
from lightship.serve.access import KeyFile, Role
from lightship.serve.limits import Clocks
from lightship.serve.poisoners import ALLOWED, FIRST_S, FORGET_S, LONGEST_S, Poisoners
from lightship.serve.server import Server, ServerOptions
from lightship.serve.source import read_source

pytestmark = pytest.mark.timeout(240)


def test_the_time_away_grows_and_is_forgotten():
    """A few are an accident; each further one doubles the time, up to an hour; ten quiet minutes begin anew."""
    found = Poisoners()

    assert [found.found("a", 0.0) for _ in range(ALLOWED)] == [0.0] * ALLOWED
    found.refuse("a", 0.0)
    assert [found.found("a", 1.0) for _ in range(3)] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    with pytest.raises(Overloaded, match="6 inputs of this key") as refused:
        found.refuse("a", 11.0)
    assert refused.value.retry_after_s == pytest.approx(1.0 + 4 * FIRST_S - 11.0)
    found.refuse("b", 11.0)
    found.refuse("a", 1.0 + 4 * FIRST_S)
    assert max(found.found("a", 60.0) for _ in range(40)) == LONGEST_S
    assert found.found("b", 60.0 + LONGEST_S + FORGET_S) == 0.0
    assert len(found) == 1


def test_without_keys_nobody_is_kept_away():
    """All would be the same nobody."""
    found = Poisoners()

    assert [found.found("", 0.0) for _ in range(20)] == [0.0] * 20
    assert not found


@pytest.fixture
def home(tmp_path, release_model) -> Home:
    """Return a home with a model that dies on a black image."""
    made = Home(tmp_path / "home").ensure()
    release_model(made, "deadly", graph=deadly())
    return made


async def test_the_key_that_kills_is_refused_and_the_other_is_served(home, monkeypatch):
    """New bytes each time, so the quarantine knows none of them; also what waits already is not run any more."""
    monkeypatch.setattr(poisoners, "ALLOWED", 1)  # each further one costs two starts of a worker
    monkeypatch.setattr(poisoners, "FIRST_S", 600.0)  # longer than this test takes on a busy machine
    keys = KeyFile(home.keys)
    bad, good = (
        {"authorization": f"Bearer {text}"} for text in (keys.create(Role.INFER)[1], keys.create(Role.INFER)[1])
    )
    options = ServerOptions(port=0, key_file=keys, clocks=Clocks(lame_s=0.01, drain_s=30.0, request_s=200.0))
    async with (
        Server([read_source(home, "deadly")], options) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=200.0) as client,
    ):
        (model,) = server.models

        async def send(value: int, headers: dict, mark: int) -> httpx.Response:
            return await client.post("/predict/deadly", content=png_of(value) + bytes([mark]), headers=headers)

        async def answered() -> httpx.Response:
            """Ask with the other key until the worker is there again."""
            while (answer := await send(200, good, 0)).status_code == 503:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)
            return answer

        assert (await send(0, bad, 1)).status_code == 500
        assert (await answered()).status_code == 200
        assert (await send(200, bad, 1)).status_code == 200
        last = await asyncio.gather(*(send(0, bad, 50 + number) for number in range(4)))
        deaths = model.deaths
        after = [await send(value, bad, 90) for value in (0, 200)]
        other = await answered()

    assert sorted(answer.status_code for answer in last) == [429, 429, 429, 500]
    assert deaths == 4
    assert [answer.status_code for answer in after] == [429, 429]
    assert 1 <= int(after[0].headers["retry-after"]) <= 600
    assert "inputs of this key made the model's process die" in after[0].json()["error"]
    assert other.status_code == 200
    assert model.deaths == deaths
