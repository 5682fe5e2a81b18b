"""One preprocessing constant changed in the code after training: the gate notices."""

from __future__ import annotations

import shutil

import pytest

from lightship.data.home import Home
from lightship.errors import GateRefused
from lightship.pipeline.ship import ship, validate
from lightship.registry.database import open_database


@pytest.mark.parametrize("pixel_max", [256.0, 1.0])
def test_changed_constant_is_refused_by_the_golden_check(site, monkeypatch, pixel_max):
    """The model was trained with 255; whoever divides by another number is refused, however small the difference.

    The cache sees changed files, not a changed value in a running process, so the decision is removed to be made again.
    """
    shutil.rmtree(site.stage("validate"))
    monkeypatch.setattr("lightship.tasks.image_classification.PIXEL_MAX", pixel_max)

    with pytest.raises(GateRefused, match=r"- golden: failed, Golden input 0000\.png .*preprocessing"):
        ship(site.recipe, home=site.home)

    with open_database(Home(site.home), read_only=True) as registry:
        assert len(registry.versions("shapes")) == 1


def test_unchanged_code_passes_again(site):
    """The same decision is made when nothing was changed."""
    shutil.rmtree(site.stage("validate"))

    validated = validate(site.recipe, home=site.home)

    assert validated.decision.released
    assert not validated.finished.skipped
    golden = next(each for each in validated.evidence if each.check == "golden")
    assert golden.verdict == "passed"
