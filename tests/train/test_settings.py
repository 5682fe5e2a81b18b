"""Settings: checked once, by name."""

from __future__ import annotations

import math

import pytest

from lightship.errors import InvalidInput
from lightship.train.schedules import rate_at
from lightship.train.settings import TrainSettings


def test_settings_go_round():
    """As plain values."""
    settings = TrainSettings(shift=1.5, seed=3)

    assert TrainSettings(**settings.to_json()) == settings
    assert settings.augments
    assert not TrainSettings().augments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architecture", "resnet"),
        ("optimizer", "adam"),
        ("schedule", "step"),
        ("monitor", "f1"),
        ("epochs", 0),
        ("epochs", 1.0),
        ("batch_size", True),
        ("patience", 0),
        ("seed", -1),
        ("threads", 0),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("dropout", 1.0),
        ("scale", -0.1),
        ("rotate", "ten"),
        ("weight_decay", math.inf),
    ],
)
def test_wrong_values_are_named(name, value):
    """Each message begins with the setting."""
    with pytest.raises(InvalidInput, match=f"^`{name}` of TrainSettings must be"):
        TrainSettings(**{name: value})


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_no_schedule_leaves_its_range(schedule):
    """Above zero and never over the highest rate, which is reached."""
    rates = [rate_at(step, steps=100, highest=0.4, schedule=schedule) for step in range(100)]

    assert all(0 < rate <= 0.4 for rate in rates)
    assert max(rates) == pytest.approx(0.4)


def test_schedules_have_their_shapes():
    """Constant, falling, rising for 30 % and falling to the end."""
    cosine = [rate_at(step, steps=10, highest=1.0, schedule="cosine") for step in range(10)]
    cycle = [rate_at(step, steps=100, highest=1.0, schedule="one-cycle") for step in range(100)]

    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)
    assert cycle[0] == pytest.approx(1 / 25)
    assert cycle.index(max(cycle)) == 30
    assert cycle[:31] == sorted(cycle[:31])
    assert cycle[30:] == sorted(cycle[30:], reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_one_step_is_a_schedule_too(schedule):
    """A run of a single step must not divide by zero."""
    assert 0 < rate_at(0, steps=1, highest=1.0, schedule=schedule) <= 1


def test_an_unknown_schedule_is_refused():
    """By its name."""
    with pytest.raises(InvalidInput, match="Got 'step'"):
        rate_at(0, steps=1, highest=1.0, schedule="step")
