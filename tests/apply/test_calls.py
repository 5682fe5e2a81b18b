"""Retries, waits and errors, without a network: the test plays the server and the clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.apply.calls import Broken, Pause, Reply, Retries, Send, error_of, metadata, predict, retry_after_s
from lightship.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    LightshipError,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)

GOOD = Reply(200, {}, b'{"label": "7", "probability": 0.9, "probabilities": {"7": 0.9, "1": 0.1}}')
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


class World:
    """A clock and a die that the test sets; every step of a call takes ``step_s``."""

    def __init__(self, *, step_s: float = 0.0, chance: float = 0.5) -> None:
        self.time = 0.0
        self.step_s = step_s
        self.chance = chance

    def retries(self, **settings: float) -> Retries:
        """Return settings that use this world."""
        return Retries(clock=lambda: self.time, wall=lambda: NOW + self.time, chance=lambda: self.chance, **settings)

    def play(self, call, *events):
        """Drive ``call`` with these answers; return (result, what it asked for)."""
        steps, waiting, event = [], list(events), None
        try:
            while True:
                step = call.send(event)
                steps.append(step)
                self.time += step.seconds if isinstance(step, Pause) else self.step_s
                event = None if isinstance(step, Pause) else waiting.pop(0)
        except StopIteration as stop:
            assert not waiting
            return stop.value, steps


def busy(status: int = 429, **headers: str) -> Reply:
    """Return an answer that asks to come again."""
    return Reply(status, {name.replace("_", "-"): text for name, text in headers.items()}, b'{"error": "full"}')


def ask(retries: Retries):
    """Return a call."""
    return predict("digits", b"image", "image/png", retries=retries)


def pauses(steps) -> list[float]:
    """Return how long it waited."""
    return [step.seconds for step in steps if isinstance(step, Pause)]


@pytest.mark.parametrize("event", [busy(429), busy(503), Broken("refused", sent=False)])
def test_what_was_not_done_is_tried_again(event):
    """429, 503 and no connection: the same request again, after a wait that doubles."""
    world = World()
    answer, steps = world.play(ask(world.retries()), event, event, GOOD)

    assert answer.label == "7"
    assert pauses(steps) == [0.05, 0.1]  # half of 0.1 s and of 0.2 s
    sends = [step for step in steps if isinstance(step, Send)]
    assert {(send.method, send.path, send.body) for send in sends} == {("POST", "/predict/digits", b"image")}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 418, 500, 501, 502, 504])
def test_other_answers_are_final(status):
    """What would be answered the same again, or may have been done, is not asked twice."""
    world = World()
    with pytest.raises(LightshipError, match="full"):
        world.play(ask(world.retries()), busy(status))


@pytest.mark.parametrize("late", [True, False])
def test_a_connection_that_broke_after_the_request_is_final(late):
    """An input that kills a worker is not given to the next one by us."""
    world = World()
    with pytest.raises(Unavailable, match="reset by peer"):
        world.play(ask(world.retries()), Broken("reset by peer", sent=True, late=late))


def test_tries_are_counted():
    """After the last one the server's own message is raised."""
    world = World()
    with pytest.raises(Overloaded, match="full") as caught:
        world.play(ask(world.retries(count=2)), busy(), busy(), busy(retry_after="7"))

    assert caught.value.retry_after_s == 7


def test_a_wait_that_the_server_asks_for_is_kept():
    """``Retry-After`` is the least; jitter comes on top, so that clients do not return together."""
    world = World()
    _, steps = world.play(ask(world.retries()), busy(retry_after="2"), GOOD)

    assert pauses(steps) == [2.05]


def test_a_wait_beyond_the_time_left_is_not_begun():
    """The server's message at once is better than the same after half a minute."""
    world = World()
    with pytest.raises(Overloaded, match="full") as caught:
        world.play(ask(world.retries(timeout_s=30)), busy(retry_after="60"))

    assert world.time == 0
    assert caught.value.retry_after_s == 60


def test_the_time_is_for_all_tries_together():
    """Each try gets what is left."""
    world = World(step_s=4)
    with pytest.raises(Overloaded):
        world.play(ask(world.retries(timeout_s=10, count=9)), busy(), busy(), busy())

    world = World(step_s=4)
    _, steps = world.play(ask(world.retries(timeout_s=10)), busy(), GOOD)
    assert [step.timeout_s for step in steps if isinstance(step, Send)] == [10, pytest.approx(10 - 4.05)]


@given(st.lists(st.sampled_from([busy(), busy(503, retry_after="1"), Broken("no", sent=False)]), max_size=12),
       st.floats(0, 0.999), st.floats(0, 3), st.floats(0.1, 60), st.integers(0, 10))  # fmt: skip
def test_no_call_outlives_its_time(events, chance, step_s, timeout_s, count):
    """Whatever the server says, no wait would end after the deadline, and tries stay within their count."""
    world = World(step_s=min(step_s, timeout_s), chance=chance)
    try:
        _, steps = world.play(ask(world.retries(timeout_s=timeout_s, count=count)), *events, GOOD)
    except (Unavailable, AssertionError):
        steps = []

    assert world.time <= timeout_s + world.step_s
    assert sum(isinstance(step, Send) for step in steps) <= count + 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("0", 0.0),
        (" 5 ", 5.0),
        ("Fri, 15 Jan 2027 08:00:10 GMT", 10.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("99999999999999999999", float("inf")),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Fri, 99 Jan 2027 08:00:10 GMT", None),
        ("²", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, seconds):
    """Both forms of HTTP are read; nonsense is as if it was not there."""
    assert retry_after_s({"retry-after": text}, wall=lambda: NOW) == seconds


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidInput), (401, Unauthenticated), (403, Forbidden), (404, NotFound), (408, DeadlineExceeded),
     (409, Conflict), (413, TooLarge), (415, UnsupportedMedia), (422, InvalidInput), (429, Overloaded),
     (500, LightshipError), (501, LightshipError), (502, Unavailable), (503, Unavailable), (504, DeadlineExceeded)],
)  # fmt: skip
def test_a_status_becomes_the_error_that_the_server_had(status, error):
    """The class by status, the server's own words, and the id to find it in its log."""
    found = error_of(Reply(status, {"x-request-id": "r-1"}, b'{"error": "the words"}'))

    assert type(found) is error
    assert "the words (request r-1)" in str(found)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": 3}', b"[]", b'{"detail": "x"}', b"\xff"])
def test_an_error_without_our_message_still_says_something(body):
    """A proxy in between answers in its own way."""
    assert "answered 502 without a message" in str(error_of(Reply(502, {}, body)))


def test_a_servers_text_cannot_steer_a_terminal():
    """Control characters become spaces, and a page of text is cut."""
    found = str(error_of(Reply(400, {}, b'{"error": "\\u001b[2Jx\\n' + b"y" * 10_000 + b'"}')))

    assert found.isprintable()
    assert len(found) < 600


def test_a_redirect_is_not_followed():
    """It would take the key to another place; the message says where it points."""
    with pytest.raises(LightshipError, match=r"answers 307 and points to https://elsewhere/x"):
        World().play(ask(Retries()), Reply(307, {"location": "https://elsewhere/x"}, b""))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"label": "7"}',
        b'{"label": 1, "probability": "x", "probabilities": {}}',
        b'{"label": 1, "probability": 1, "probabilities": 1}',
    ],
)
def test_an_answer_that_is_none_is_an_error_with_a_hint(body):
    """Any other program may listen at that address."""
    with pytest.raises(LightshipError, match=r"not JSON|must be a JSON object|must have label"):
        World().play(ask(Retries()), Reply(200, {}, body))


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("digits", "/v2/models/digits"),
        ("a/../b?c#d e", "/v2/models/a%2F..%2Fb%3Fc%23d%20e"),
        ("digits:3", "/v2/models/digits/versions/3"),
        ("digits:../x", "/v2/models/digits/versions/..%2Fx"),
    ],
)
def test_a_name_stays_one_segment_of_the_path(model, path):
    """No name reaches another route."""
    assert next(metadata(model, retries=Retries())).path == path


def test_an_alias_is_no_name_for_a_server():
    """The server decides which aliases it serves and follows; a client sees names and versions."""
    with pytest.raises(InvalidInput, match="a name or a version"):
        next(metadata("digits@staging", retries=Retries()))


@pytest.mark.parametrize("model", ["", ".", "..", ":1"])
def test_names_that_would_leave_the_path_are_refused(model):
    """Dots are not quoted in a path, so they are refused."""
    with pytest.raises(InvalidInput, match="must not be empty or dots"):
        next(metadata(model, retries=Retries()))


@pytest.mark.parametrize(
    "settings", [{"timeout_s": 0}, {"timeout_s": float("inf")}, {"timeout_s": float("nan")}, {"count": -1}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    """Every wait has an end."""
    with pytest.raises(InvalidInput, match="of a client must be"):
        Retries(**settings)
