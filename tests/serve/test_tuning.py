"""The best batch is measured when the server is idle, kept, and used again."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.data.home import Home
from lightship.serve.tuning import best_batch, candidates
from lightship.tasks.image_pixels import png_bytes

DEADLINE_S = 30.0


def batch_of(server) -> tuple[int, dict | None]:
    """Return the batch that a server runs, and what was measured."""
    (model,) = httpx.get(f"{server.control_url}/models").json()["models"]
    return model["batch"], model["tuning"]


def wait_for_tuning(server) -> dict:
    """Wait until the model has been measured."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := batch_of(server))[1] is None:
        assert time.monotonic() < deadline, "it was never measured"
        time.sleep(0.05)
    return {"batch": found[0], **found[1]}


def test_it_is_measured_once_kept_and_used(tmp_path, release_model, launch, image):
    """A second server has it from the start; `--retune` measures again; answers come all the while."""
    home = Home(tmp_path / "home").ensure()
    release_model(home, "digits")
    first = launch(home, "digits", "--auth", "none")
    measured = wait_for_tuning(first)
    first.process.terminate()
    assert first.process.wait(DEADLINE_S) == 0
    (kept,) = home.tuning.iterdir()
    said = json.loads(kept.read_text())
    kept.write_text(json.dumps({"rows_per_s": {"1": 5.0, "3": 9.0}}))

    second = launch(home, "digits", "--auth", "none")
    known = wait_for_tuning(second)
    again = launch(home, "digits", "--auth", "none", "--retune")
    answer = httpx.post(f"{again.url}/predict/digits", content=png_bytes(image(3)[:, :, None]))

    assert 1 <= measured["batch"] <= 8
    assert set(measured["rows_per_s"]) == {"1", "2", "4", "8"}
    assert said == {"rows_per_s": measured["rows_per_s"]}
    assert known["batch"] == 3
    assert answer.status_code == 200
    assert set(wait_for_tuning(again)["rows_per_s"]) == {"1", "2", "4", "8"}


def test_the_batch_that_a_search_found_is_only_the_beginning(tmp_path, release_model, launch):
    """It was best without a server around it: it is run from the start, and the rates are measured all the same."""
    home = Home(tmp_path / "home").ensure()
    release_model(home, "digits")
    first = launch(home, "digits", "--auth", "none")
    wait_for_tuning(first)
    (kept,) = home.tuning.iterdir()
    kept.write_text(json.dumps({"rows_per_s": {"3": 9.0}}))

    second = launch(home, "digits", "--auth", "none")
    begun = wait_for_tuning(second)
    deadline = time.monotonic() + DEADLINE_S
    while len(batch_of(second)[1]["rows_per_s"]) == 1:
        assert time.monotonic() < deadline, "it was never measured"
        time.sleep(0.05)

    assert begun == {"batch": 3, "rows_per_s": {"3": 9.0}}
    assert set(batch_of(second)[1]["rows_per_s"]) == {"1", "2", "4", "8"}


def test_a_broken_file_is_measured_anew(tmp_path, release_model, launch):
    """It is no reason not to serve."""
    home = Home(tmp_path / "home").ensure()
    release_model(home, "digits")
    first = launch(home, "digits", "--auth", "none")
    wait_for_tuning(first)
    (kept,) = home.tuning.iterdir()
    kept.write_text("{")

    second = launch(home, "digits", "--auth", "none")

    assert set(wait_for_tuning(second)["rows_per_s"]) == {"1", "2", "4", "8"}


@pytest.mark.parametrize(
    ("rates", "best", "on_one_core"),
    [
        ({1: 100.0}, 1, 1),
        ({1: 100.0, 2: 190.0, 4: 300.0, 8: 400.0, 16: 405.0, 32: 380.0, 64: 300.0}, 8, 16),
        ({1: 100.0, 8: 300.0, 64: 225.0}, 8, 8),
        ({1: 100.0, 2: 150.0, 4: 200.0, 8: 300.0, 16: 400.0, 32: 500.0, 64: 600.0}, 64, 64),
        ({1: 10.0, 2: 10.1, 4: 10.2}, 1, 2),
        ({1: 100.0, 2: 107.0, 4: 108.0}, 2, 4),
        ({1: 16_000.0, 2: 24_000.0, 4: 32_000.0, 8: 33_000.0, 32: 36_000.0, 64: 35_000.0}, 64, 64),
    ],
)
def test_the_best_batch_is_the_smallest_that_is_near_the_best(rates, best, on_one_core):
    """Within three percent, or nobody should wait for more; of small rows many are needed to pay for the crossing."""
    assert best_batch(rates, cores=2) == best
    assert best_batch(rates, cores=1) == on_one_core


@given(st.integers(1, 5000))
def test_no_candidate_is_over_what_was_proven(proven):
    """And one row is always among them."""
    tried = candidates(proven)

    assert tried[0] == 1
    assert tried[-1] == min(proven, 256)
    assert list(tried) == sorted(set(tried))
