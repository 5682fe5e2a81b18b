"""``lightship diff``: two releases of one recipe, of other names, of models that were imported; and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tests.imports.conftest import info, linear, model, node
from tests.pipeline.conftest import Site

import lightship
from lightship.data.home import Home
from lightship.errors import InvalidInput
from lightship.pipeline.compare import compare
from lightship.pipeline.compare_rows import figure_of_pairs
from lightship.pipeline.imported import import_model
from lightship.pipeline.ship import ship
from lightship.registry.statements import read_statements
from lightship.types import Verdict
from lightship.validate.report.comparison import Basis, ComparisonFacts, Figure, render_comparison_json


@dataclass(frozen=True)
class Two(Site):
    """A site with two versions: 1 runs int8-static, 2 the reference of the same training."""


@pytest.fixture(scope="module")
def two(shipped, tmp_path_factory) -> Two:
    """Ship the recipe once more with the reference: the same graph, the same gate rows."""
    folder = tmp_path_factory.mktemp("two")
    site = Two(folder, folder / "home")
    shutil.copytree(shipped.home, site.home)
    (folder / "images").symlink_to(shipped.folder / "images")
    recipe = site.write("reference.toml", ('variant = "int8-static"', 'variant = "reference"'))
    released = ship(recipe, home=site.home).released
    assert (released.name, released.version) == ("shapes", 2)
    return site


@pytest.fixture
def copied(two: Two, tmp_path: Path) -> Two:
    """A copy that a test may change."""
    shutil.copytree(two.home, tmp_path / "home")
    return Two(two.folder, tmp_path / "home")


def figure(facts: ComparisonFacts, name: str) -> Figure:
    """Return the figure of the signed evidence with that name."""
    (found,) = (each for each in facts.figures if each.name == name)
    return found


def kept(site: Site) -> Iterator[Path]:
    """Yield the folders that hold the answers to the gate rows."""
    return site.run.glob("validate-*")


def right_rows(site: Site) -> list[np.ndarray]:
    """Return which gate rows each version has right, read from what the stages kept."""
    found = {}
    for folder in kept(site):
        said = json.loads((folder / "rows.json").read_bytes())
        chosen = json.loads((folder / "validated.json").read_bytes())["chosen"]
        names = np.array(["a one", "nought", "二"])
        found[chosen] = names[np.load(folder / "logits.npy").argmax(axis=1)] == np.array(said["labels"])
    return [found["int8-static"], found["reference"]]


def test_versions_on_the_same_gate_rows_are_compared_row_by_row(two):
    """The paired counts are those of the answers, and the figures those of the signed evidence."""
    facts = compare("shapes:1", "shapes:2", home=two.home)

    before, after = right_rows(two)
    accuracy = figure(facts, "Accuracy")
    assert accuracy.basis is Basis.PAIRED
    assert accuracy.before is not None
    assert accuracy.before.estimate == pytest.approx(before.mean())
    assert accuracy.difference is not None
    assert accuracy.difference.estimate == pytest.approx(after.mean() - before.mean())
    assert accuracy.difference.low <= accuracy.difference.estimate <= accuracy.difference.high
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    assert f"{lost} were right before only and {gained} are right now only" in accuracy.words
    assert {"variant", "precision", "graph", "size, bytes"} <= {
        c.what for c in facts.changes if c.topic == "How it runs"
    }
    assert not [c for c in facts.changes if c.what == "reference graph"]
    assert {c.what for c in facts.changes if c.topic == "The model"} == {"recipe · optimize · variant"}


def test_what_only_a_variant_needs_is_not_called_lost(two):
    """The reference has nothing to be compared with, so its release lacks no proof."""
    facts = compare("shapes:1", "shapes:2", home=two.home)
    change = {each.check: each.change for each in facts.evidence}

    assert change["noninferiority"] == "not needed"
    assert change["accuracy"] == "same"
    assert "lost" not in change.values()
    back = {each.check: each.change for each in compare("shapes:2", "shapes:1", home=two.home).evidence}
    assert back["class_harm"] == "not needed"


def test_answers_that_are_gone_leave_an_unpaired_difference(copied):
    """Without the kept answers the same figures are there, and it says that the difference is not paired."""
    for folder in kept(copied):
        shutil.rmtree(folder)

    accuracy = figure(compare("shapes:1", "shapes:2", home=copied.home), "Accuracy")

    assert accuracy.basis is Basis.SAME_ROWS
    assert "not paired" in accuracy.words
    assert accuracy.difference is not None
    assert accuracy.difference.low < 0 < accuracy.difference.high


@pytest.mark.parametrize("name", ["logits.npy", "rows.json"])
def test_answers_that_somebody_touched_do_not_count(copied, name):
    """They are signed by nobody: only whole ones that give exactly the signed figures make a pair."""
    for folder in kept(copied):
        path = folder / name
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(bytes(data))

    assert figure(compare("shapes:1", "shapes:2", home=copied.home), "Accuracy").basis is Basis.SAME_ROWS


def test_better_answers_with_their_own_marks_do_not_count(copied):
    """Answers that were made to look better, digests and all, do not give the figures that were signed."""
    import hashlib

    for folder in kept(copied):
        said = json.loads((folder / "rows.json").read_bytes())
        logits = np.load(folder / "logits.npy")
        truth = [["a one", "nought", "二"].index(label) for label in said["labels"]]
        logits[np.arange(len(truth)), truth] = 1e6
        np.save(folder / "logits.npy", logits)
        mark = json.loads((folder / "stage.json").read_bytes())
        mark["files"]["logits.npy"] = hashlib.sha256((folder / "logits.npy").read_bytes()).hexdigest()
        (folder / "stage.json").write_text(json.dumps(mark))

    assert figure(compare("shapes:1", "shapes:2", home=copied.home), "Accuracy").basis is Basis.SAME_ROWS


def test_times_of_two_machines_are_not_compared(two, monkeypatch):
    """The same figures, signed on another machine: no ratio, and the reason is said."""

    def elsewhere(home: Home, reference: str):
        found = read_statements(home, reference)
        if reference == "shapes:1":
            return found
        moved = tuple(replace(each, machine={**each.machine, "digest": "other"}) for each in found.evidence)
        return replace(found, evidence=moved)

    here = figure(compare("shapes:1", "shapes:2", home=two.home), "Speed against its reference")
    monkeypatch.setattr("lightship.pipeline.compare.read_statements", elsewhere)
    facts = compare("shapes:1", "shapes:2", home=two.home)
    there = figure(facts, "Speed against its reference")

    assert here.basis is Basis.SAME_MACHINE
    assert here.difference is not None
    assert here.before is not None
    assert here.difference.estimate == pytest.approx(1 / here.before.estimate)
    assert there.basis is Basis.OTHER_MACHINE
    assert there.difference is None
    speed = next(each for each in facts.findings if each.about == "speed")
    assert (speed.word, speed.tone) == ("not comparable", Verdict.UNPROVEN)


def test_the_same_bundle_differs_in_nothing(two):
    """Two references to one version, by number and by alias."""
    facts = compare("shapes", "shapes:1", home=two.home)

    assert facts.same_bundle
    assert facts.changes == ()
    assert facts.headline == "shapes:1 and shapes:1 are the same bundle."
    assert {each.change for each in facts.evidence} == {"same"}


def test_both_answer_given_images_as_they_do_in_use(two):
    """Accuracy, agreement and rows are those of the models as anybody loads them; the times are paired."""
    images = two.folder / "images"
    facts = compare("shapes:1", "shapes:2", data=images, home=two.home)

    files = sorted(images.glob("*/*.png"))
    said = []
    for version in (1, 2):
        with lightship.load(f"shapes:{version}", home=two.home) as loaded:
            said.append([answer.label for answer in loaded.predict_many(files)])
    truth = [path.parent.name for path in files]
    assert facts.paired is not None
    figures = {each.name: each for each in facts.paired.figures}
    assert facts.paired.rows == len(files)
    for side, answers in zip((figures["Accuracy"].before, figures["Accuracy"].after), said, strict=True):
        assert side is not None
        assert side.estimate == pytest.approx(np.mean([a == t for a, t in zip(answers, truth, strict=True)]))
    agreement = figures["Agreement of the two"].after
    assert agreement is not None
    assert agreement.estimate == pytest.approx(np.mean([a == b for a, b in zip(*said, strict=True)]))
    time = figures["Time of one row"]
    assert time.basis is Basis.PAIRED
    assert time.difference is not None
    assert time.difference.low <= time.difference.estimate <= time.difference.high


def doubled() -> bytes:
    """``linear`` with other weights: the same interface, another model."""
    weight = np.random.default_rng(2).normal(size=(4, 2)).astype(np.float32)
    return model([node("MatMul", ["x", "w"], ["y"])], [info("x", ["N", 4])], [info("y", ["N", 2])], {"w": weight})


@pytest.fixture
def imported(tmp_path) -> Path:
    """A home with two models that were imported under two names."""
    home = tmp_path / "home"
    for name, graph in (("one", linear()), ("two", doubled())):
        (tmp_path / f"{name}.onnx").write_bytes(graph)
        import_model(tmp_path / f"{name}.onnx", name=name, home=home)
    return home


def test_models_that_nobody_judged_are_said_to_be_unproven(imported):
    """Two names, no accuracy on either side: not comparable, and the unproven checks are named."""
    facts = compare("one:1", "two:1", home=imported)
    quality = next(each for each in facts.findings if each.about == "quality")

    assert (quality.word, quality.tone) == ("not comparable", Verdict.UNPROVEN)
    assert facts.before.status == facts.after.status == "structural"
    assert set(facts.after.unproven) == {"accuracy", "parity"}
    assert "accuracy" in next(each.sentence for each in facts.findings if each.about == "evidence")
    assert "reference graph" in {c.what for c in facts.changes if c.topic == "The model"}


def test_given_rows_of_tensors_are_answered_by_both(imported, tmp_path):
    """The cosine and the agreement of two linear maps, against numpy; labels name the classes by number."""
    x = np.random.default_rng(4).normal(size=(200, 4)).astype(np.float32)
    one, two = (np.random.default_rng(seed).normal(size=(4, 2)).astype(np.float32) for seed in (1, 2))
    np.savez(tmp_path / "rows.npz", x=x, label=(x @ one).argmax(axis=1))

    facts = compare("one:1", "two:1", data=tmp_path / "rows.npz", home=imported)

    assert facts.paired is not None
    figures = {each.name: each for each in facts.paired.figures}
    before, after = figures["Accuracy"].before, figures["Accuracy"].after
    same = ((x @ one).argmax(axis=1) == (x @ two).argmax(axis=1)).mean()
    assert before is not None
    assert after is not None
    assert (before.estimate, after.estimate) == (1.0, pytest.approx(same))
    assert figures["Accuracy"].difference is not None
    assert figures["Accuracy"].difference.high < 0
    assert "shown to be worse" in figures["Accuracy"].words
    quality = next(each for each in facts.findings if each.about == "quality")
    assert (quality.word, quality.tone) == ("worse", Verdict.FAILED)


def test_rows_that_one_of_them_does_not_take_are_refused_by_its_name(imported, tmp_path):
    """Three columns where four are taken."""
    np.savez(tmp_path / "rows.npz", x=np.zeros((5, 3), np.float32))

    with pytest.raises(InvalidInput, match=r"(?s)5 of 5 rows|one:1"):
        compare("one:1", "two:1", data=tmp_path / "rows.npz", home=imported)


def test_the_command_prints_text_json_and_a_page(two, lightship, tmp_path):
    """All three say the same, and exit codes are those of other commands."""
    page = tmp_path / "diff.html"
    text = lightship("diff", "shapes:1", "shapes:2", "--html", page, home=two.home)
    said = lightship("diff", "shapes:1", "shapes:2", "--json", home=two.home)

    assert (text.code, said.code) == (0, 0), text.err + said.err
    facts = compare("shapes:1", "shapes:2", home=two.home)
    assert json.loads(said.out) == json.loads(render_comparison_json(facts))
    assert facts.headline in text.out
    assert "paired" in text.out
    assert facts.headline in page.read_text(encoding="utf-8")
    missing = lightship("diff", "shapes:1", "shapes:9", home=two.home)
    assert (missing.code, missing.out) == (3, "")
    assert "no version 9" in missing.err
    assert lightship("diff", "shapes:1", "Shapes!", home=two.home).code == 2
    assert lightship("diff", "shapes:1", "shapes:2", "--data", tmp_path / "none.npz", home=two.home).code == 3


def test_a_damaged_release_is_refused(copied, lightship):
    """Nothing is compared with what does not verify."""
    facts = compare("shapes:1", "shapes:2", home=copied.home)
    blob = copied.home / "store" / "blobs" / "sha256" / facts.after.bundle.removeprefix("sha256:")
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes().replace(b"reference", b"referenze", 1))

    ran = lightship("diff", "shapes:1", "shapes:2", home=copied.home)

    assert ran.code == 6
    assert "damaged" in ran.err


@pytest.mark.parametrize(
    ("losses", "gains", "shown"),
    [(0, 0, "No difference"), (5, 3, "No difference"), (30, 2, "worse"), (2, 30, "better")],
    ids=["none", "few", "worse", "better"],
)
def test_a_paired_difference_says_what_is_shown(losses, gains, shown):
    """Whether there is a difference is McNemar's to tell; the interval agrees with it and covers the estimate."""
    found = figure_of_pairs("Accuracy", None, None, losses=losses, gains=gains, rows=500)

    gap = found.difference
    assert gap is not None
    assert gap.estimate == pytest.approx((gains - losses) / 500)
    assert gap.low <= gap.estimate <= gap.high
    assert shown in found.words
    assert (gap.high < 0) == (shown == "worse")
    assert (gap.low > 0) == (shown == "better")
