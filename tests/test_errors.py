"""One table says what an error means at each door."""

from __future__ import annotations

import re

import pytest

import lightship
from lightship import errors


def _classes():
    return [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]


OURS = [cls for cls in _classes() if issubclass(cls, errors.LightshipError)]


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_every_error_class_has_a_status_and_stands_in_the_drawing(cls):
    """A new class is drawn in the docstring and gets the status of its nearest parent."""
    status = errors.status_of(cls)

    assert 400 <= status.http <= 599
    assert 1 <= status.exit_code <= 8
    assert cls.__name__ in errors.__doc__


def test_an_error_that_is_not_ours_is_ours_to_answer_for():
    """A bug is 500 and exit code 1, whatever its class."""
    assert errors.status_of(ZeroDivisionError()) == errors.status_of(errors.LightshipError)


def test_the_public_names_are_a_promise():
    """Adding or removing one is a decision, not an accident."""
    assert sorted(lightship.__all__) == ["Model", "__version__", "import_model", "load", "optimize_model", "ship"]
    assert all(hasattr(lightship, name) for name in lightship.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", lightship.__version__)


def test_an_unknown_attribute_is_an_attribute_error():
    """The late imports do not hide a typo."""
    with pytest.raises(AttributeError, match="no attribute 'shipp'"):
        lightship.shipp  # noqa: B018  # the access is the test
