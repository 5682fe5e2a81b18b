"""Rows with labels of every kind: what they are is told, a good variant passes, and no wrecked one does.

The search is stood in for; the models are trained on real data, and rows, judging, bundle and registry are real.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from tests.pipeline import labeled_models as labeled
from tests.pipeline import optimized_models as models

from lightship.data.home import Home
from lightship.errors import InvalidInput
from lightship.optimize.answers import count_correct
from lightship.optimize.candidate import Candidate, Rows
from lightship.pipeline.imported import import_model
from lightship.pipeline.labeled_answers import ScoredClasses
from lightship.pipeline.optimized import optimize_model
from lightship.pipeline.release_report import release_facts
from lightship.registry.statements import read_statements
from lightship.validate.looks import Speed


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
    """Return a function that gives a home with the model of one kind, imported once."""
    known = {}

    def home_of(kind):
        if kind not in known:
            root = tmp_path_factory.mktemp("labeled")
            made = labeled.KINDS[kind]()
            (root / "m.onnx").write_bytes(made.graph())
            known[kind] = Home(root / "home")
            upto = {"batch": 16} if made.batch == "N" else {}
            import_model(root / "m.onnx", name="m", home=known[kind], upto=upto)
        return known[kind]

    return home_of


@pytest.fixture
def optimize(imported, tmp_path, monkeypatch):
    """Return a function that lets the search propose graphs for a model of a kind, and judges them on its rows."""

    def go(kind, *graphs, label=None, **options):
        made = labeled.KINDS[kind]()
        home = Home(tmp_path / kind.replace(" ", "-"))
        if not home.root.exists():
            shutil.copytree(imported(kind).root, home.root)
        found = models.found(made.graph(), {f"v{place}": graph for place, graph in enumerate(graphs)})
        monkeypatch.setattr("lightship.pipeline.optimize_search.search", found)
        data = {"x": made.rows} if label is False else {"x": made.rows, "label": made.truth if label is None else label}
        return optimize_model("m:1", data=data, home=home, **options)

    return go


TOLD = {
    "one number": "labels are numbers (one a row), judged by the output 'y'",
    "numbers": "labels are numbers (8 a row), judged by the output 'y'",
    "tags": "labels are tags (0 or 1, 4 a row), judged by the output 'y'",
    "one probability": "labels are classes, judged by the output 'y'",
    "classes without scores": "labels are classes, judged by the output 'y'",
    "one row at a time": "labels are classes, judged by the output 'y'",
}
CHECKS = {
    "one number": {"noninferiority", "slice_harm", "slices", "errors"},
    "numbers": {"noninferiority", "slice_harm", "slices", "errors"},
    "tags": {"noninferiority", "slice_harm", "slices", "errors"},
    "one probability": {
        "noninferiority",
        "probabilities",
        "class_harm",
        "slice_harm",
        "slices",
        "calibration",
        "errors",
    },
    "classes without scores": {"noninferiority", "class_harm", "slice_harm", "slices"},
    "one row at a time": {
        *("noninferiority", "probabilities", "class_harm", "slice_harm", "slices", "calibration", "errors")
    },
}


@pytest.mark.parametrize("kind", TOLD)
def test_a_good_variant_passes_and_is_told_by_what_the_labels_are(optimize, kind):
    """Eight bits of weights: nothing is lost, whatever the labels are."""
    done = optimize(kind, labeled.KINDS[kind]().graph(labeled.rounded))

    assert (done.chosen, done.version, done.status) == ("v0", 2, "structural"), done.outcomes
    assert TOLD[kind] in done.words
    evidence = {row.check: row for row in done.evidence}
    assert set(evidence) == CHECKS[kind] | {
        *("golden", "shapes", "values", "latency", "search", "data", "accuracy", "audit", "parity"),
    }
    assert TOLD[kind] in evidence["data"].summary
    assert evidence["accuracy"].verdict == "unproven"


WRECKS = {
    "one number": (labeled.noise, labeled.halved, labeled.first_lost),
    "numbers": (labeled.noise, labeled.halved, labeled.constant),
    "tags": (labeled.noise, labeled.first_lost, labeled.constant),
    "one probability": (labeled.noise, labeled.first_lost, labeled.constant),
    "classes without scores": (labeled.noise, labeled.first_lost, labeled.constant),
    "one row at a time": (labeled.noise, labeled.first_lost, labeled.constant),
}


@pytest.mark.parametrize("kind", WRECKS)
def test_no_wrecked_variant_of_any_kind_passes(optimize, kind):
    """Each is refused for its answers, with the layer that went wrong first where one is to be seen."""
    made = labeled.KINDS[kind]()
    for wreck in WRECKS[kind]:
        done = optimize(kind, made.graph(wreck))

        assert (done.chosen, done.version) == ("reference", None), wreck.__name__
        (outcome,) = done.outcomes
        assert outcome.verdict == "failed", (wreck.__name__, outcome.reason)
        layer = "first" if wreck is labeled.noise else "second"
        assert f"the first layer to go wrong is '{layer}'" in outcome.reason, (wreck.__name__, outcome.reason)


def test_a_softmax_that_is_lost_or_put_in_is_refused():
    """Classes and probabilities can be had from either, and whoever reads the answers gets other numbers."""
    rng = np.random.default_rng(5)
    truth = rng.integers(10, size=600)
    logits = 4 * np.eye(10)[truth] + rng.normal(size=(600, 10))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    one = 1 / (1 + np.exp(-(2.0 * (truth[:, None] > 4) - 1)))

    def verdicts(labels, reference, variant):
        answers = ScoredClasses([str(number) for number in range(10)])
        answers.add(range(600), labels, reference, variant)
        found = answers.look("v", margin=0.01, harm_alpha=0.05, subjects={"v": "0" * 64}, speed=Speed())(0.05)
        return {each.check: str(each.verdict) for each in found}

    for labels, reference, variant in (
        (truth, shares, logits),
        (truth, logits, shares),
        (truth, shares, np.log(shares)),
        (truth > 4, one, np.log(one / (1 - one))),
    ):
        assert verdicts(labels.astype(np.int64), reference, variant) == {"probabilities": "failed"}
    of_eight_bits = np.round(shares * 127) / 127  # whose sums are not quite 1
    assert set(verdicts(truth, shares, of_eight_bits).values()) == {"passed"}


@pytest.mark.parametrize(("kind", "off", "margin"), [("numbers", 0.12, 0.1), ("tags", 40.0, 0.1)])
def test_a_variant_that_is_as_good_on_average_and_wrecks_one_slice_is_refused(optimize, kind, off, margin):
    """Rows with a bright third pixel get other answers: few enough for the mean, and named by what they share."""
    made = labeled.KINDS[kind]()

    done = optimize(kind, models.edited(made.graph(), labeled.moved_where_bright(off)), margin=margin)

    assert done.version is None
    (outcome,) = done.outcomes
    verdicts = {each.check: str(each.verdict) for each in outcome.evidence}
    assert (verdicts["noninferiority"], verdicts["slice_harm"]) == ("passed", "failed"), outcome.reason
    assert outcome.reason.startswith("The slice x[2] >= 0."), outcome.reason
    assert optimize(kind, made.graph(labeled.rounded), margin=margin).version == 2


@pytest.mark.parametrize("kind", ["one probability", "classes without scores", "one row at a time"])
def test_right_classes_are_counted_whatever_the_answers_are(kind):
    """One probability, the class itself, or scores of one row: the search must not take them for ten scores a row."""
    made = labeled.KINDS[kind]()
    hidden = np.maximum(made.rows @ made.weights["w1"] + made.weights["b1"], 0)
    scores = hidden @ made.weights["w2"] + made.weights["b2"]
    said = scores[:, 0] > 0 if scores.shape[1] == 1 else scores.argmax(axis=1)
    inputs = made.rows[:200] if made.batch == "N" else made.rows[:200, np.newaxis]
    runner = Candidate("m", graph=made.graph()).runner(batched=made.batch == "N")

    right = count_correct(runner, Rows({"x": inputs}, made.truth[:200], "y", batched=made.batch == "N"))

    assert right == int((said == made.truth)[:200].sum())
    assert 120 < right < 200


def test_the_margin_of_numbers_is_relative(optimize):
    """Answers that are a tenth too small: errors grow by less than half, and by more than a fiftieth."""
    shrunk = labeled.lower_halves().graph(labeled.shrunk)

    assert optimize("numbers", shrunk).version is None
    lax = optimize("numbers", shrunk, margin=0.5)
    assert lax.version == 2
    assert "growth of 50 % is ruled out" in lax.outcomes[0].reason


def test_a_lowest_accuracy_is_of_classes(optimize):
    """Numbers have none, and what would be meant by it is not guessed."""
    with pytest.raises(InvalidInput, match=r"`--min-accuracy` is of classes, and labels are numbers"):
        optimize("numbers", min_accuracy=0.9)
    passed = optimize("one probability", labeled.halves().graph(labeled.rounded), min_accuracy=0.7)
    assert passed.status == "passed"


def test_a_person_may_say_what_labels_are(optimize):
    """A single tag in each row may be a class; what cannot be is refused."""
    digits = labeled.classes().truth
    one_hot = np.eye(10, dtype=np.int64)[digits]
    good = labeled.classes(batch=1).graph(labeled.rounded)

    with pytest.raises(InvalidInput, match="`--label-kind classes` or `--label-kind tags`"):
        optimize("one row at a time", good, label=one_hot)
    assert optimize("one row at a time", good, label=one_hot, label_kind="classes").version == 2
    with pytest.raises(InvalidInput, match=r"`label_kind` must be one of classes, tags, numbers\. Got 'ranks'"):
        optimize("one row at a time", good, label_kind="ranks")
    with pytest.raises(InvalidInput, match=r"`--label-kind` says what labels are, and arrays has none"):
        optimize("one row at a time", good, label=False, label_kind="classes")


@pytest.mark.parametrize(
    ("kind", "spoil", "words"),
    [
        ("one number", lambda truth: truth / 20, "one who always answers the median"),
        ("numbers", lambda truth: -truth, "one who always answers the median"),
        ("tags", lambda truth: 1 - truth, "of the most frequent ones"),
        ("classes without scores", lambda truth: (truth + 1) % 10, "the most frequent class alone"),
    ],
    ids=["another unit", "another sign", "inverted", "shifted"],
)
def test_labels_that_are_not_the_model_s_are_refused(optimize, kind, spoil, words):
    """Against such labels every variant is as good as the reference."""
    with pytest.raises(InvalidInput, match=f"The labels do not fit the model: .*{words}"):
        optimize(kind, label=spoil(labeled.KINDS[kind]().truth))


def test_gate_rows_that_were_seen_stay_seen_without_their_labels(optimize):
    """A second look at the same inputs is the second one, whatever their labels are said to be."""
    good = labeled.traits().graph(labeled.rounded)
    optimize("tags", good)

    again = optimize("tags", good, label=False)

    data = next(row for row in again.evidence if row.check == "data")
    assert "gate rows looked at 2 times" in data.summary


def test_the_release_remembers_what_became_of_each_candidate(optimize, tmp_path):
    """Whoever reads it later: one lost at the gate, with its reason, and one was not judged."""
    made = labeled.traits()
    graphs = [made.graph(each) for each in (labeled.constant, labeled.rounded, None)]

    done = optimize("tags", *graphs)

    assert [str(each.verdict) for each in done.outcomes] == ["failed", "passed", "unproven"]
    found = read_statements(Home(tmp_path / "tags"), "m:2")
    (search,) = (each.evidence for each in found.evidence if each.evidence.check == "search")
    assert search.measured["outcomes"] == [
        {"name": each.name, "verdict": str(each.verdict), "reason": each.reason} for each in done.outcomes
    ]
    reasons = {each.name: each.reason for each in release_facts(Home(tmp_path / "tags"), "m:2").variants}
    assert "its share of wrong tags is" in reasons["v0"]
    assert reasons["v2"] == "not judged: v1 passed before it"
