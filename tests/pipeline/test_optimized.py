"""A released model, optimized on rows that are given: who passes, who does not, and what is said and kept.

Most tests stand in for the search (what it proposes and what it measured); rows, judging, bundle and registry are real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from tests.imports import conftest as graphs
from tests.pipeline import optimized_models as models

import lightship
from lightship.bundle.signing import TrustStore
from lightship.bundle.store import BlobStore, StoredBundle
from lightship.bundle.verify import verify_stored
from lightship.cli.main import cli
from lightship.data.home import Home
from lightship.errors import BundleRefused, InvalidData, InvalidInput, NotFound
from lightship.pipeline.imported import import_model
from lightship.pipeline.optimized import optimize_model
from lightship.registry.database import open_database
from lightship.validate.fidelity import FidelityBudget

SEARCH = "lightship.pipeline.optimize_search.search"


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
    """Return a home with two imported models: a perceptron of digits and an encoder of tokens."""
    root = tmp_path_factory.mktemp("optimized")
    home = Home(root / "home")
    for name, graph in (("digits", models.digits_graph()), ("encoder", models.encoder())):
        (root / f"{name}.onnx").write_bytes(graph)
        import_model(
            root / f"{name}.onnx", name=name, home=home, upto={"T": 16} if name == "encoder" else {"batch": 16}
        )
    return home


@pytest.fixture
def home(imported, tmp_path, monkeypatch):
    """Return a copy of that home, which is the environment's too."""
    copy = Home(tmp_path / "home")
    shutil.copytree(imported.root, copy.root)
    monkeypatch.setenv("LIGHTSHIP_HOME", str(copy.root))
    return copy


@pytest.fixture
def propose(monkeypatch):
    """Return a function that lets the search propose the given graphs."""

    def go(graphs, reference=None, **figures):
        stand_in = models.found(reference or models.digits_graph(), graphs, **figures)
        monkeypatch.setattr(SEARCH, stand_in)
        return stand_in.calls

    return go


@pytest.fixture
def labeled(tmp_path):
    """Return a file of labeled digits."""
    return models.rows_file(tmp_path / "rows.npz")


@pytest.fixture
def plain(tmp_path):
    """Return the same without labels."""
    return models.rows_file(tmp_path / "plain.npz", labels=False)


def _versions(home):
    with open_database(home) as registry:
        return [(v.name, v.version, v.aliases) for name in ("digits", "encoder") for v in registry.versions(name)]


def _manifest(home, bundle):
    return StoredBundle(BlobStore(home.store), bundle).manifest


# -- who passes -------------------------------------------------------------------------------------------------------


def test_labels_and_a_lowest_accuracy_make_a_release_that_passed(home, propose, labeled):
    """Two variants beside each other, signed evidence, and production, as none was there: nothing is unproven."""
    calls = propose({"int8-static": models.good()})

    done = optimize_model("digits:1", data=labeled, min_accuracy=0.85, home=home)

    assert (done.chosen, done.parent, done.version, done.status, done.alias) == (
        "int8-static", 1, 2, "passed", "production",
    )  # fmt: skip
    manifest = _manifest(home, done.bundle)
    assert [variant.name for variant in manifest.variants] == ["int8-static", "reference"]
    assert manifest.default == "int8-static"
    assert set(manifest.golden.expected) == {"int8-static", "reference"}
    assert manifest.lineage["parent"]["version"] == 1
    assert manifest.lineage["optimized"]["passes"] == ["int8-static"]
    assert manifest.lineage["origin"]["source"]["format"] == "onnx"
    verified = verify_stored(BlobStore(home.store), done.release, trust=TrustStore(home.trust))
    assert verified.status == "passed"
    verdicts = {each.check: str(each.verdict) for each in verified.evidence}
    assert verdicts == {
        "noninferiority": "passed", "probabilities": "passed", "class_harm": "passed", "latency": "passed",
        "golden": "passed", "shapes": "passed", "values": "passed", "search": "passed", "data": "passed",
        "accuracy": "passed", "audit": "passed", "parity": "unproven", "slice_harm": "passed",
        "slices": "passed", "calibration": "passed", "errors": "passed",
    }  # fmt: skip
    assert not calls[0]["settings"].named
    assert calls[0]["settings"].batches == (1, 2, 4, 8, 16)
    rows = sum(len(batch["x"]) for batch in calls[0]["calibration"])
    assert rows + calls[0]["selection"].count < 0.6 * len(models.digits()[1])


def test_without_a_lowest_accuracy_the_child_is_structural_as_its_parent(home, propose, labeled):
    """That it is as good as the reference does not say how good that is; nothing becomes production."""
    propose({"int8-static": models.good()})

    done = optimize_model("digits:1", data=labeled, home=home)

    assert (done.version, done.status, done.alias) == (2, "structural", None)
    accuracy = next(row for row in done.evidence if row.check == "accuracy")
    assert accuracy.verdict == "unproven"
    assert "--min-accuracy" in accuracy.summary
    with pytest.raises(NotFound, match="--accept-unproven"):
        lightship.load("digits", home=home)


def test_an_accuracy_that_is_not_reached_leaves_the_release_structural(home, propose, labeled):
    """The variant is as good as the reference, and neither is good enough: told, not hidden."""
    propose({"int8-static": models.good()})

    done = optimize_model("digits:1", data=labeled, min_accuracy=0.9999, home=home)

    assert (done.version, done.status, done.alias) == (2, "structural", None)
    assert any("the release is structural: Accuracy 0.9" in word for word in done.words)


def test_consent_makes_the_first_version_production(home, propose, plain):
    """As with an import; the history says who accepted it."""
    propose({"int8-static": models.good()})

    done = optimize_model("digits:1", data=plain, accept_unproven=True, home=home)

    assert (done.status, done.alias) == ("structural", "production")
    with open_database(home) as registry:
        assert "[accepted as unproven]" in registry.history("digits").entries[-1].why


@pytest.mark.parametrize("labels", [True, False], ids=["labeled", "plain"])
@pytest.mark.parametrize("wreck", models.WRECKED)
def test_no_wrecked_variant_passes(home, propose, tmp_path, wreck, labels):
    """Whatever is wrong with it, and whatever speed was measured: the reference stays, and says why."""
    data = models.rows_file(tmp_path / "rows.npz", labels=labels)
    propose({"wrecked": models.WRECKED[wreck]()}, ratio=0.01)

    done = optimize_model("digits:1", data=data, home=home)

    assert (done.chosen, done.version) == ("reference", None)
    (outcome,) = done.outcomes
    assert outcome.verdict in ("failed", "undecided")
    assert outcome.reason
    assert len(_versions(home)) == 2


@pytest.mark.parametrize("labels", [True, False], ids=["labeled", "plain"])
def test_an_output_that_no_label_judges_must_stay_the_references(propose, tmp_path, labels):
    """An embedding or a class beside right scores was anybody's guess: labels speak of the scores alone."""
    home, graph = Home(tmp_path / "home"), models.edited(models.digits_graph(), models.with_three_outputs)
    (tmp_path / "m.onnx").write_bytes(graph)
    import_model(tmp_path / "m.onnx", name="digits", home=home, upto={"batch": 4})
    propose({name.replace(" ", "-"): models.OUTPUTS[name]() for name in ("digit", "hidden layer", "all right")}, graph)

    done = optimize_model(
        "digits:1", data=models.rows_file(tmp_path / "rows.npz", labels=labels), output="logits", home=home
    )

    digit, hidden, good = done.outcomes
    assert (digit.verdict, hidden.verdict, good.verdict) == ("failed", "failed", "passed")
    assert "rows are broken" in digit.reason
    faithful = next(row for row in done.evidence if row.check == "fidelity")
    assert ("(of hidden, digit)" in faithful.summary) is labels


def test_the_first_that_passes_is_taken(home, propose, labeled):
    """A wrecked one before it is named with its reason; the one after it is not judged."""
    wrecked = models.WRECKED["one class lost"]()
    propose({"a": wrecked, "b": models.good(), "c": models.digits_graph()})

    done = optimize_model("digits:1", data=labeled, home=home)

    assert done.chosen == "b"
    assert [str(each.verdict) for each in done.outcomes] == ["failed", "passed", "unproven"]


def test_a_slower_variant_passes_only_where_speed_was_not_asked_for(home, propose, labeled):
    """For size it may be slow."""
    propose({"int8-static": models.good()}, ratio=1.5)

    slow = optimize_model("digits:1", data=labeled, home=home)
    small = optimize_model("digits:1", data=labeled, objective="size", home=home)

    assert (slow.version, small.version) == (None, 2)
    assert "slow" in slow.outcomes[0].reason


def test_a_batch_that_it_cannot_do_is_no_throughput(home, propose, labeled, monkeypatch):
    """It is fast in batches of 16 and right in single rows only: for latency fine, for throughput not."""
    mixing = models.edited(models.digits_graph(), _mixing)
    propose({"dynamic": mixing}, batch=16)

    busy = optimize_model("digits:1", data=labeled, objective="latency", home=home)

    assert busy.version == 2
    manifest = _manifest(home, busy.bundle)
    assert manifest.interface.proven == {"batch": (1, 1)}
    shapes = next(row for row in busy.evidence if row.check == "shapes")
    assert "rows run one at a time" in shapes.summary
    # The spread between places of a batch is no rounding: golden examples run alone, and their tolerance is for that.
    assert float(manifest.golden.expected["dynamic"].tolerance) < 0.05


def test_a_row_that_spoils_its_neighbors_is_refused_where_they_share_a_batch(home, propose, labeled):
    """For throughput the batch stays, so one NaN in it would be everybody's."""
    propose({"dynamic": models.edited(models.digits_graph(), _mixing)}, batch=8)

    done = optimize_model("digits:1", data=labeled, objective="throughput", home=home)

    assert done.version is None
    assert "the other rows of the batch move" in done.outcomes[0].reason


def _mixing(graph):
    """Add a trace of the batch's largest logit to all rows: what a scale of the whole batch does."""
    from onnx import helper, numpy_helper

    graph.node[-1].output[0] = "clean"
    graph.initializer.append(numpy_helper.from_array(np.array(0.003, np.float32), "trace"))
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["clean"], ["top"], keepdims=0),
            helper.make_node("Mul", ["top", "trace"], ["bit"]),
            helper.make_node("Add", ["clean", "bit"], ["logits"]),
        ]
    )


# -- without labels, without rows, with few ---------------------------------------------------------------------------


def _tokens(path, *, count=700, more=()):
    rows = [*(row.tolist() for row in models.sentences(count)), *more]
    pq.write_table(pa.table({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}), path)
    return path


def _rounded_encoder(step=64):
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(models.encoder())
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 2:
            scale = np.abs(values).max() / step
            tensor.CopyFrom(numpy_helper.from_array((np.round(values / scale) * scale).astype(np.float32), tensor.name))
    return graph.SerializeToString(deterministic=True)


def test_sentences_of_several_lengths_gate_an_encoder_by_fidelity(home, propose, tmp_path):
    """Padded for the search, as they are for the gate; budgets are kept."""
    calls = propose({"int8-weights": _rounded_encoder()}, models.encoder())
    data = _tokens(tmp_path / "rows.parquet")

    done = optimize_model("encoder:1", data=data, home=home)

    assert (done.chosen, done.version, done.status) == ("int8-weights", 2, "structural")
    assert "fidelity" in {row.check for row in done.evidence}
    selection = calls[0]["selection"]
    assert selection.inputs["input_ids"].shape[1] == 12
    assert selection.output == "embedding"
    assert (selection.inputs["attention_mask"].min(), selection.inputs["attention_mask"].max()) == (0, 1)
    assert any("padded" in word for word in done.words)
    assert _manifest(home, done.bundle).interface.proven == {"batch": (1, 32), "T": (1, 16)}


def test_a_length_that_one_row_has_is_never_left_out(home, propose, tmp_path):
    """One text of a single word among hundreds, which is not of the length that sizes are tried with."""

    def second_word(graph):
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "second"))
        graph.node.insert(0, helper.make_node("Gather", ["input_ids", "second"], ["word"], axis=1))
        graph.node.insert(1, helper.make_node("Sub", ["word", "word"], ["nothing"]))
        graph.node.insert(2, helper.make_node("Add", ["input_ids", "nothing"], ["ids"]))
        graph.node[3].input[1] = "ids"

    propose({"from-two": models.edited(models.encoder(), second_word)}, models.encoder())

    without = optimize_model("encoder:1", data=_tokens(tmp_path / "rows.parquet"), home=home)
    with_it = optimize_model("encoder:1", data=_tokens(tmp_path / "more.parquet", more=[[7]]), home=home)

    assert _manifest(home, without.bundle).interface.proven["T"] == (2, 16)
    assert with_it.version is None
    assert "T 1 fails" in with_it.outcomes[0].reason


def _wrong_beyond(limit):
    """Return a change that turns the answer round where a value of the row is greater than ``limit``."""

    def change(graph):
        output = graph.output[0].name
        graph.initializer.append(numpy_helper.from_array(np.array(limit, np.float32), "limit"))
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "columns"))
        graph.node[-1].output[0] = "right"
        graph.node.extend(
            [
                helper.make_node("ReduceMax", ["x", "columns"], ["most"], keepdims=1),
                helper.make_node("Greater", ["most", "limit"], ["far"]),
                helper.make_node("Neg", ["right"], ["wrong"]),
                helper.make_node("Where", ["far", "wrong", "right"], [output]),
            ]
        )

    return change


def test_values_are_proven_round_real_rows(home, propose, tmp_path):
    """Golden inputs are drawn, and twice their values may lie among those of rows: nothing beyond was asked then."""
    propose({"v": models.edited(models.digits_graph(), _wrong_beyond(21))})
    _, rows, _ = models.digits()
    np.savez(tmp_path / "rows.npz", x=20 * rows / rows.max())

    done = optimize_model("digits:1", data=tmp_path / "rows.npz", home=home)

    assert done.chosen == "v"
    assert _manifest(home, done.bundle).interface.values["x"].high == 20


def test_a_stricter_budget_refuses_what_a_lax_one_takes(home, propose, tmp_path):
    """Weights of five bits: cosine about 0.98."""
    propose({"coarse": _rounded_encoder(12)}, models.encoder())
    data = _tokens(tmp_path / "rows.parquet")

    strict = optimize_model("encoder:1", data=data, budget=FidelityBudget(min_cosine=0.999), home=home)
    lax = optimize_model("encoder:1", data=data, budget=FidelityBudget(min_cosine=0.9, max_broken=0.1), home=home)

    assert (strict.version, strict.outcomes[0].verdict) == (None, "failed")
    assert lax.version == 2


def test_few_rows_leave_it_undecided_and_say_how_many_are_missing(home, propose, tmp_path):
    """The reference stays; no error."""
    propose({"int8-static": models.good()})
    data = models.rows_file(tmp_path / "few.npz", count=60, labels=False)

    done = optimize_model("digits:1", data=data, home=home)

    assert (done.version, done.outcomes[0].verdict) == (None, "undecided")
    assert "rows" in done.outcomes[0].reason


def test_without_rows_only_what_loses_nothing_is_tried_and_told(home, propose):
    """It must answer drawn inputs as the reference does; what was not measured stands there as unproven."""
    reordered = models.edited(models.digits_graph(), lambda graph: graph.node[0].CopyFrom(graph.node[0]) or None)
    calls = propose({"fused": reordered})

    done = optimize_model("digits:1", home=home)

    assert (done.chosen, done.version, done.status) == ("fused", 2, "structural")
    assert all(plan.lossless for plan in calls[0]["plans"])
    assert calls[0]["calibration"] == []
    assert not calls[0]["judged"]
    verdicts = {row.check: row.verdict for row in done.evidence}
    assert (verdicts["equivalence"], verdicts["fidelity"], verdicts["accuracy"]) == ("passed", "unproven", "unproven")
    assert any("only variants that should lose nothing were tried" in word for word in done.words)


@pytest.mark.parametrize("wreck", ["noise", "scaled", "swapped classes", "nan on some rows"])
def test_without_rows_nothing_that_differs_passes(home, propose, wreck):
    """A pass that calls itself lossless may err."""
    propose({"fused": models.WRECKED[wreck]()})

    assert optimize_model("digits:1", home=home).version is None


def test_without_rows_a_lossy_pass_is_refused(home):
    """Nobody could judge it."""
    with pytest.raises(InvalidInput, match=r"'int8-dynamic' changes answers.*--data"):
        optimize_model("digits:1", passes=["int8-dynamic"], home=home)


RANDOM = np.random.default_rng(2)
FORMS = {
    "one row at a time": (graphs.linear(1), {"x": RANDOM.normal(size=(500, 4)).astype(np.float32)}),
    "texts": (
        graphs.texts(),
        {"city": np.array(["a", "yes", "b", "é"] * 125), "size": RANDOM.normal(size=(500, 3)).astype(np.float32)},
    ),
    "no rows": (
        graphs.model([graphs.node("ReduceMean", ["x"], ["y"], keepdims=0)],
                     [graphs.info("x", ["n", 3])], [graphs.info("y", [])]),
        {"x": RANDOM.normal(size=(500, 7, 3)).astype(np.float32)},
    ),
    "integers": (
        graphs.model([graphs.node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
                     [graphs.info("x", ["N", 6])], [graphs.info("y", ["N"], TensorProto.INT64)]),
        {"x": RANDOM.normal(size=(500, 6)).astype(np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_models_of_every_form_are_judged_and_released(propose, tmp_path, form):
    """A fixed batch, texts, whole inputs, answers that are integers: with rows and without."""
    graph, rows = FORMS[form]
    (tmp_path / "model.onnx").write_bytes(graph)
    home = Home(tmp_path / "home")
    import_model(tmp_path / "model.onnx", name="m", home=home)
    propose({"same": graph}, graph)

    without = optimize_model("m:1", home=home)
    judged = optimize_model("m:1", data=rows, home=home)

    assert (without.version, judged.version) == (2, 3)
    with lightship.load("m:3", home=home) as model:
        assert model.variant == "same"


def test_whole_numbers_are_proven_round_real_rows(propose, tmp_path):
    """Ids as far as their table goes, whatever rows have; a mask as far as rows have one."""
    table = np.random.default_rng(4).normal(size=(50, 8)).astype(np.float32)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", 6]) for name in ("ids", "mask")]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("Cast", ["mask"], ["share"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["share", "last"], ["shares"]),
        helper.make_node("Mul", ["words", "shares"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "words_axis"], ["y"], keepdims=0),
    ]
    weights = {"table": table, "last": np.array([2]), "words_axis": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "words",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(model)
    draw = np.random.default_rng(5)
    rows = {"ids": draw.integers(0, 20, (900, 6)), "mask": draw.integers(0, 2, (900, 6))}
    rows["mask"][:, 0] = 1
    np.savez(tmp_path / "golden.npz", **{name: array[:8] for name, array in rows.items()})
    home = Home(tmp_path / "home")
    import_model(tmp_path / "model.onnx", name="m", golden=tmp_path / "golden.npz", home=home)
    propose({"v": models.edited(model, _wrong_masks(3))}, model)

    done = optimize_model("m:1", data=rows, home=home)

    assert done.chosen == "v"
    values = _manifest(home, done.bundle).interface.values
    assert (values["ids"].low, values["ids"].high) == (0, 49)
    assert (values["mask"].low, values["mask"].high) == (0, 2)


def _wrong_masks(limit):
    """Return a change of a graph: of opposite sign where a mask is above a limit, which no row has."""

    def change(graph):
        graph.initializer.append(numpy_helper.from_array(np.array(limit, np.int64), "limit"))
        graph.node[-1].output[0] = "right"
        graph.node.extend(
            [
                helper.make_node("ReduceMax", ["mask", "words_axis"], ["most"], keepdims=1),
                helper.make_node("Greater", ["most", "limit"], ["far"]),
                helper.make_node("Neg", ["right"], ["wrong"]),
                helper.make_node("Where", ["far", "wrong", "right"], ["y"]),
            ]
        )

    return change


def test_values_are_proven_of_graphs_that_take_one_row_at_a_time(propose, tmp_path):
    """A graph that was exported for one row has a range like any other."""
    graph, rows = FORMS["one row at a time"]
    (tmp_path / "model.onnx").write_bytes(graph)
    home = Home(tmp_path / "home")
    import_model(tmp_path / "model.onnx", name="m", home=home)
    most = float(rows["x"].max())
    propose({"v": models.edited(graph, _wrong_beyond(1.1 * most))}, graph)

    done = optimize_model("m:1", data=rows, home=home)

    assert done.chosen == "v"
    allowed = _manifest(home, done.bundle).interface.values["x"]
    assert most <= allowed.high < 1.25 * most


def test_a_shipped_classifier_is_optimized_on_images_by_class(site, propose):
    """Its task encodes them, labels are its classes by name; the reference of its bundle is what is searched round."""
    home = Home(site.home)
    with open_database(home) as registry:
        bundle = StoredBundle(BlobStore(home.store), registry.find("shapes").bundle)
    graph = bundle.read(bundle.manifest.variant("reference").graph)
    calls = propose({"fused": graph}, graph)

    done = optimize_model("shapes", data=site.folder / "images", min_accuracy=0.5, margin=0.05, home=home)

    assert (done.chosen, done.version, done.status, done.alias) == ("fused", 2, "passed", None)
    assert calls[0]["selection"].output == "logits"
    assert set(calls[0]["selection"].labels) == {0, 1, 2}
    assert {row.check for row in done.evidence} >= {"parity", "accuracy", "noninferiority", "values"}
    assert _manifest(home, done.bundle).golden.inputs == bundle.manifest.golden.inputs
    with lightship.load("shapes:2", home=home) as model:
        image = next((site.folder / "images" / "nought").iterdir())
        assert model.predict(image).label == "nought"


# -- what can go wrong ------------------------------------------------------------------------------------------------


def test_rows_that_the_reference_cannot_answer_are_no_fault_of_the_variant(home, propose, tmp_path):
    """A token beyond the vocabulary: few such rows are skipped and named, many refuse the source."""
    propose({"int8-weights": _rounded_encoder()}, models.encoder())
    rows = [row.tolist() for row in models.sentences(700)]
    rows[5][0] = rows[77][1] = 5_000
    table = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")

    done = optimize_model("encoder:1", data=tmp_path / "rows.parquet", home=home)

    assert done.version == 2
    data = next(row for row in done.evidence if row.check == "data")
    assert "2 bad, the first: rows.parquet#" in data.summary
    for row in rows[::2]:
        row[0] = 5_000
    pq.write_table(pa.table(table), tmp_path / "bad.parquet")
    with pytest.raises(InvalidData, match=r"rows of .*bad\.parquet cannot be used"):
        optimize_model("encoder:1", data=tmp_path / "bad.parquet", home=home)


def test_a_row_without_an_answer_is_no_fault_of_the_variant(home, propose, tmp_path):
    """The reference gives NaN for it: it is a bad row, and the other rows judge."""
    propose({"int8-static": models.good()})
    rows, truth = models.digits()[1].copy(), models.digits()[2]
    rows[7] = np.nan
    np.savez(tmp_path / "nan.npz", x=rows, label=truth)

    done = optimize_model("digits:1", data=tmp_path / "nan.npz", home=home)

    assert done.chosen == "int8-static"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "speed"}, "An objective must be one of latency"),
        ({"minutes": 0.0}, "`minutes` of a search must be above 0"),
        ({"passes": ["int9"]}, "There is no pass or variant 'int9'"),
        ({"min_accuracy": 0.9}, "budget is judged on rows"),
        ({"margin": 1.5}, "`margin` must be a share"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_make_no_sense_are_refused_before_anything_runs(home, options, words):
    """By name, with what is allowed."""
    with pytest.raises(InvalidInput, match=words):
        optimize_model("digits:1", home=home, **options)


def test_data_that_does_not_fit_is_refused(home, plain, tmp_path):
    """Labels that the budget needs, classes that the model lacks, rows of another model, too few to choose on."""
    truth = models.digits()[2]
    np.savez(tmp_path / "far.npz", x=models.digits()[1], label=truth + 5)
    np.savez(tmp_path / "shifted.npz", x=models.digits()[1], label=(truth + 1) % 10)
    np.savez(tmp_path / "wide.npz", x=np.zeros((50, 65), np.float32))
    np.savez(tmp_path / "few.npz", x=models.digits()[1][:9])
    for path, options, words in (
        (plain, {"min_accuracy": 0.9}, r"has no 'label'"),
        (tmp_path / "far.npz", {}, r"whole numbers up to 14.*'logits' FP32"),
        (tmp_path / "shifted.npz", {}, "The labels do not fit the model"),
        (plain, {"output": "none"}, "has no output 'none'"),
        (tmp_path / "wide.npz", {}, r"'x' takes rows of the shape \[64\]. Got \[65\]"),
        (tmp_path / "few.npz", {}, "needs at least 8 different rows"),
    ):
        with pytest.raises(InvalidInput, match=words):
            optimize_model("digits:1", data=path, home=home, **options)
    assert len(_versions(home)) == 2


def test_a_release_that_is_not_whole_is_not_optimized(home, plain):
    """It is verified as a server does it."""
    with open_database(home) as registry:
        bundle = registry.find("digits:1").bundle
    graph = _manifest(home, bundle).file("variants/reference/model.onnx")
    path = home.store / "blobs" / "sha256" / graph.sha256
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    with pytest.raises(BundleRefused, match="damaged"):
        optimize_model("digits:1", data=plain, home=home)


def test_a_reference_that_answers_otherwise_here_is_not_optimized(home, plain, monkeypatch):
    """Its golden examples fail on this machine: nothing could be compared with it."""
    from lightship.engine.onnx_runtime import OnnxRuntimeEngine

    honest = OnnxRuntimeEngine.run
    monkeypatch.setattr(
        OnnxRuntimeEngine, "run", lambda self, inputs: {k: v + 0.01 for k, v in honest(self, inputs).items()}
    )

    with pytest.raises(BundleRefused, match="golden input"):
        optimize_model("digits:1", data=plain, home=home)


@pytest.mark.parametrize("where", ["release_variant", "judge"])
def test_an_interruption_leaves_nothing_half_written(home, propose, plain, monkeypatch, where):
    """No version, no evidence of one; the same call again does it all."""
    propose({"int8-static": models.good()})

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"lightship.pipeline.optimized.{where}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimize_model("digits:1", data=plain, home=home)
    assert len(_versions(home)) == 2
    with open_database(home) as registry:
        assert registry.verify_history().ok

    assert optimize_model("digits:1", data=plain, home=home).version == 2


def test_the_same_work_is_the_same_version_and_a_child_can_be_optimized(home, propose, plain):
    """The bundle has no times in it; the lineage of a grandchild leads to the import."""
    propose({"int8-static": models.good()})
    first = optimize_model("digits:1", data=plain, home=home)
    again = optimize_model("digits:1", data=plain, home=home)
    child = optimize_model("digits:2", data=plain, home=home)

    assert (again.version, again.is_new, again.bundle) == (2, False, first.bundle)
    assert (child.parent, child.version) == (2, 3)
    lineage = _manifest(home, child.bundle).lineage
    assert lineage["parent"]["version"] == 2
    assert lineage["origin"]["source"]["format"] == "onnx"


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(home):
    """Return a function that runs a command line; a known error is raised, as main() gets it."""

    def run_one(*arguments):
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run_one


def test_the_command_says_what_was_found_and_what_to_type_next(run, propose, labeled):
    """A table, the evidence, the two ways on; progress on stderr."""
    propose({"int8-static": models.good()})

    done = run("optimize", "digits:1", "--data", labeled)

    assert done.exit_code == 0
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert rows[0] == ["VARIANT", "SPEED", "THROUGHPUT", "QUALITY", "SIZE", "MEMORY", "WHY"]
    assert rows[2][:3] == ["int8-static", "2.00x (1.82 to 2.22)", "2.00x (1.82 to 2.22)"]
    assert rows[2][-1] == "chosen"
    assert "Released digits:2  (int8-static)" in done.stdout
    assert "lightship promote digits:2 --accept-unproven" in done.stdout
    assert "Read the rows" in done.stderr
    assert run("optimize", "digits:1", "--data", labeled, "--quiet").stderr == ""


def test_the_reference_is_an_honest_result(run, propose, labeled, home):
    """Exit code 0, the reason of each loser, a report, no version."""
    propose({"wrecked": models.WRECKED["one class lost"]()})

    done = run("optimize", "digits:1", "--data", labeled)
    said = json.loads(run("optimize", "digits:1", "--data", labeled, "--json").stdout)

    assert done.exit_code == 0
    assert "The reference of digits:1 stays: nothing better passed." in done.stdout
    assert (said["version"], said["chosen"]) == (None, "reference")
    assert said["outcomes"][0]["verdict"] == "failed"
    assert json.loads((home.runs / "digits-optimized.json").read_bytes()) == said
    assert len(_versions(home)) == 2


def test_options_of_a_model_are_none_of_a_recipe(run, tmp_path):
    """A misplaced option is not dropped in silence."""
    done = run("optimize", tmp_path / "recipe.toml", "--min-cosine", "0.9")

    assert done.exit_code == 2
    assert "--min-cosine is for a released model" in done.output


def test_a_new_version_is_listed_verified_asked_and_served(run, propose, labeled, home, tmp_path):
    """By the commands and by a real server, which answers as the variant does and has the batch that was found."""
    propose({"int8-static": models.good()}, batch=4)
    run("optimize", "digits:1", "--data", labeled)
    rows = models.digits()[1][:20]
    np.savez(tmp_path / "ask.npz", x=rows)

    assert "digits\t2\t2" in run("models").stdout
    assert "variant int8-static" in run("show", "digits:2").stdout
    assert "digits:2 is whole" in run("verify", "digits:2").stdout
    run("predict", "digits:2", tmp_path / "ask.npz", "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        mine = found["logits"]
    with lightship.load("digits:1") as parent:
        theirs = parent.predict({"x": rows})["logits"]
    assert 1e-3 < np.abs(mine - theirs).max() < 1
    process = subprocess.Popen(
        [sys.executable, "-m", "lightship.cli.main", "serve", "digits:2", "--port", "0", "--auth", "none", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        said = json.loads(process.stdout.readline())
        url = said["url"]
        asked = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [20, 64], "data": rows.ravel().tolist()}]}
        answer = httpx.post(f"{url}/v2/models/digits/infer", json=asked, timeout=30).json()
        (state,) = httpx.get(f"{said['control_url']}/models").json()["models"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()
    assert (state["batch"], set(state["tuning"]["rows_per_s"])) == (4, {"4"})
    served = np.array(answer["outputs"][0]["data"], np.float32).reshape(20, 10)
    np.testing.assert_allclose(served, mine, atol=1e-4)


def test_a_variant_of_another_engine_is_tried_released_and_used(home, propose, labeled):
    """The graph of the reference, run by OpenVINO: no second copy of it in the bundle; its own tolerance."""
    pytest.importorskip("openvino")
    propose({"openvino-fp32": models.digits_graph()}, engine="openvino", options={})

    done = optimize_model("digits:1", data=labeled, min_accuracy=0.8, home=home)

    assert (done.chosen, done.version) == ("openvino-fp32", 2)
    manifest = _manifest(home, done.bundle)
    variants = {variant.name: variant for variant in manifest.variants}
    assert variants["openvino-fp32"].engine == "openvino"
    assert variants["openvino-fp32"].graph == variants["reference"].graph
    golden = next(row for row in done.evidence if row.check == "golden")
    assert "settings of openvino" in golden.summary
    with lightship.load("digits") as model:
        rows, truth = models.digits()[1:]
        assert (model.predict({"x": rows})["logits"].argmax(axis=1) == truth).mean() > 0.85


def test_a_real_search_makes_a_smaller_model(run, home, labeled):
    """No stand-in: passes, fresh processes, the gate. Size is no noise, so the result is certain."""
    done = run("optimize", "digits:1", "--data", labeled, "--objective", "size", "--minutes", "0.2",
               "--passes", "int8-static", "--min-accuracy", "0.8", "--json")  # fmt: skip

    said = json.loads(done.stdout)
    assert (said["version"], said["status"], said["alias"]) == (2, "passed", "production")
    (candidate, *_) = said["search"]["candidates"]
    assert candidate["size_bytes"] < said["search"]["reference"]["size_bytes"]
    with lightship.load("digits") as model:
        rows, truth = models.digits()[1:]
        assert (model.predict({"x": rows})["logits"].argmax(axis=1) == truth).mean() > 0.85
