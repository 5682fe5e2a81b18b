"""What was found on the rows goes into the release: the range of values always, the temperature if a recipe says so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lightship.apply.model import load
from lightship.bundle.signing import TrustStore
from lightship.bundle.statement import TASK_SUBJECT, read_evidence
from lightship.bundle.store import BlobStore, StoredBundle
from lightship.data.home import Home
from lightship.errors import InvalidInput, InvalidTensor
from lightship.validate.checks.calibration import temperature_in

APPLY = ("[gate]", '[gate]\ntemperature = "apply"')


def bundle_of(home: Home, answer: dict) -> StoredBundle:
    """Return the bundle that ``ship --json`` told of."""
    return StoredBundle(BlobStore(home.store), answer["bundle"])


def test_the_temperature_is_in_the_release_with_its_evidence(site, shipped, lightship):
    """Off by default; applied, answers are those of divided logits, and signed evidence is of the task that has it."""
    home = Home(site.home)
    ran = lightship("ship", "--json", site.write("calm.toml", APPLY), home=site.home)
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    manifest = bundle_of(home, answer).manifest

    before = bundle_of(Home(shipped.home), shipped.answer).manifest
    assert "temperature" not in before.task.config
    temperature = manifest.task.config["temperature"]
    assert temperature != "1"
    (row,) = (each for each in answer["evidence"] if each["check"] == "calibration")
    evidence = read_evidence(BlobStore(home.store).get(row["digest"]), trust=TrustStore(home.trust)).evidence
    assert evidence.measured["applied"] is True
    assert evidence.measured["temperature"] == pytest.approx(float(temperature), abs=1e-4)
    assert evidence.measured["before"]["ece"]["n"] == evidence.measured["after"]["ece"]["n"] > 0
    assert evidence.subjects[TASK_SUBJECT] == manifest.task.digest != before.task.digest
    image = np.full((8, 8), 90, np.uint8)
    with load("shapes:1", home=home) as plain, load("shapes:2", home=home) as calm:
        sure, answer = plain.predict(image), calm.predict(image)
    assert list(answer.probabilities) == list(sure.probabilities)
    powers = {label: share ** (1 / float(temperature)) for label, share in sure.probabilities.items()}
    expected = {label: power / sum(powers.values()) for label, power in powers.items()}
    assert dict(answer.probabilities) == pytest.approx(expected, abs=1e-6)


def test_the_proven_values_are_in_the_release(shipped):
    """Every image passes; NaN and infinity, which no row has, are refused, in process as on a server."""
    home = Home(shipped.home)
    values = bundle_of(home, shipped.answer).manifest.interface.values["image"]

    assert not values.nan
    assert not values.infinite
    with load("shapes", home=home) as model:
        shape = (1, *(dim for dim in model.interface.inputs[0].shape if isinstance(dim, int)))
        for shade in (0, 255):
            encoded = model.task.encode(np.full((8, 8), shade, np.uint8))["image"]
            assert values.low <= encoded.min() <= encoded.max() <= values.high
            model.predict({"image": encoded[None]})
        with pytest.raises(InvalidTensor, match=r"input 'image' must be .* Got nan at \[0, 0, 0, 0\] and"):
            model.predict({"image": np.full(shape, np.nan, np.float32)})


def test_without_probabilities_there_is_no_temperature():
    """A clear word in place of a release that says it was calibrated."""
    with pytest.raises(InvalidInput, match="needs a model that gives probabilities of classes"):
        temperature_in([])
