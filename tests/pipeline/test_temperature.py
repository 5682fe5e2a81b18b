"""What was found on the rows goes into the release: the range of values always, the temperature if a recipe says so."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from tests.pipeline import optimized_models as models

from lightship.apply.model import load
from lightship.bundle.signing import TrustStore
from lightship.bundle.statement import TASK_SUBJECT, read_evidence
from lightship.bundle.store import BlobStore, StoredBundle
from lightship.data.home import Home
from lightship.errors import InvalidInput, InvalidTensor
from lightship.pipeline.imported import import_model
from lightship.pipeline.optimized import optimize_model
from lightship.registry.statements import read_statements
from lightship.validate.checks.calibration import temperature_in

APPLY = ("[gate]", '[gate]\ntemperature = "apply"')


@pytest.fixture
def optimize(site, monkeypatch):
    """Return a function that optimizes the model of the site on its images; the search proposes these graphs."""

    def go(reference, *graphs, **options):
        found = models.found(
            (site.stage("train") / "reference.onnx").read_bytes(),
            {f"v{place}": graph for place, graph in enumerate(graphs)},
        )
        monkeypatch.setattr("lightship.pipeline.optimize_search.search", found)
        return optimize_model(reference, data=site.folder / "images", margin=0.1, home=Home(site.home), **options)

    return go


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


def calibration_of(home: Home, reference: str) -> dict:
    """Return what the signed evidence of a version says of its calibration."""
    found = read_statements(home, reference).evidence
    return next(each.evidence.measured for each in found if each.evidence.check == "calibration")


def test_optimize_applies_the_temperature_once(site, optimize):
    """Reported unless it is asked for; applied, it takes the place of the last one, whatever that was."""
    home, image = Home(site.home), np.full((8, 8), 90, np.uint8)
    same = onnx.load(site.stage("train") / "reference.onnx")
    same.producer_name = "another"
    graph = same.SerializeToString()

    told = optimize("shapes:1", graph)
    calm = optimize("shapes:1", graph, temperature="apply")
    again = optimize(f"shapes:{calm.version}", graph, temperature="apply")

    plain, task, repeated = (bundle_of(home, {"bundle": each.bundle}).manifest.task for each in (told, calm, again))
    assert "temperature" not in plain.config
    temperature = float(task.config["temperature"])
    assert temperature != 1
    assert repeated == task
    first, second = (calibration_of(home, f"shapes:{each.version}") for each in (calm, again))
    assert (first["current"], first["applied"]) == (1, True)
    assert first["selection_rows"] > 0
    assert first["after"]["ece"]["n"] == first["rows"] > 0
    assert second["current"] == temperature
    assert second["before"]["nll"] == pytest.approx(first["after"]["nll"], rel=1e-4)
    assert abs(second["improvement"]["nll"]["estimate"]) < 1e-4
    with load(f"shapes:{told.version}", home=home) as one, load(f"shapes:{again.version}", home=home) as other:
        sure, answer = one.predict(image), other.predict(image)
    powers = {label: share ** (1 / temperature) for label, share in sure.probabilities.items()}
    expected = {label: power / sum(powers.values()) for label, power in powers.items()}
    assert dict(answer.probabilities) == pytest.approx(expected, abs=1e-6)


def test_the_reference_gets_the_temperature_where_nothing_is_better(site, optimize, lightship):
    """What the parent's evidence says of the trained model is said again of the new task; nothing else is released."""
    home = Home(site.home)
    ran = lightship("ship", "--json", site.write("own.toml", ('"int8-static"', '"reference"')), home=site.home)
    parent = f"shapes:{json.loads(ran.out)['version']}"

    done = optimize(parent, temperature="apply")

    assert (done.chosen, done.is_new) == ("reference", True)
    found = {each.evidence.check: each.evidence for each in read_statements(home, f"shapes:{done.version}").evidence}
    task = bundle_of(home, {"bundle": done.bundle}).manifest.task
    assert float(task.config["temperature"]) != 1
    assert {each.subjects[TASK_SUBJECT] for each in found.values()} == {task.digest}
    assert found["parity"].method["said_before"].startswith("sha256:")
    assert "noninferiority" not in found
    assert optimize(f"shapes:{done.version}", temperature="apply").version is None
    kept = optimize("shapes:1", temperature="apply")
    assert kept.version is None
    assert (
        "no temperature was applied: nothing passed, and shapes:1 runs 'int8-static', not its reference" in kept.words
    )


def test_a_temperature_that_would_change_no_answer_is_refused(tmp_path):
    """Before anything is searched: a graph's own outputs are given as they are."""
    home = Home(tmp_path / "home")
    (tmp_path / "m.onnx").write_bytes(models.digits_graph())
    import_model(tmp_path / "m.onnx", name="m", home=home)

    with pytest.raises(InvalidInput, match="the task 'tensors' gives the graph's own outputs as they are"):
        optimize_model("m:1", data=models.rows_file(tmp_path / "rows.npz"), home=home, temperature="apply")
    with pytest.raises(InvalidInput, match="A temperature is fitted on rows with classes"):
        optimize_model("m:1", home=home, temperature="apply")
