"""Checks on logits and graphs: parity, golden, shapes, latency; on a real graph where one is run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.engine.measure import PairedTiming, Percentiles, median_interval
from lightship.engine.runner import load_runner
from lightship.errors import InvalidInput, InvalidMedia, LightshipError
from lightship.types import TensorSpec, Verdict
from lightship.validate.checks.golden import check_golden
from lightship.validate.checks.latency import check_latency
from lightship.validate.checks.parity import check_parity, parity_tolerance
from lightship.validate.checks.shapes import check_shapes, proven_batch

SUBJECTS = {"reference": "0" * 64}
WEIGHT = np.random.default_rng(2).normal(size=(64, 10)).astype(np.float32)


def graph_run(*, fixed_batch: int | None = None):
    """Return a real graph, ``x @ w``, as a callable; optionally one that was traced with a fixed batch."""
    nodes = [helper.make_node("MatMul", ["image", "w"], ["logits"])]
    weights = [numpy_helper.from_array(WEIGHT, "w")]
    if fixed_batch is not None:
        nodes = [
            helper.make_node("Reshape", ["image", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ]
        weights.append(numpy_helper.from_array(np.array([fixed_batch, 64]), "shape"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    runner = load_runner(model.SerializeToString())
    return lambda batch: runner.run({"image": batch})["logits"]


@pytest.fixture
def batch():
    """40 encoded rows."""
    return np.random.default_rng(4).normal(size=(40, 64)).astype(np.float32)


def strict(evidence):
    """Write the evidence as strict JSON: NaN or a numpy number would raise."""
    json.dumps([dict(evidence.measured), dict(evidence.method)], allow_nan=False)
    return evidence


# --- parity ---------------------------------------------------------------------------------------------------------


def parity(engine, float32, float64):
    """Check parity of rows r0, r1 and so on."""
    return strict(check_parity(engine, float32, float64, rows=[f"r{k}" for k in range(len(engine))], subjects=SUBJECTS))


def test_faithful_graph_passes(batch):
    """ONNX Runtime against numpy in float32 and float64."""
    found = parity(graph_run()(batch), batch @ WEIGHT, batch.astype(np.float64) @ WEIGHT.astype(np.float64))

    assert found.verdict is Verdict.PASSED


def test_tolerance_is_eight_times_what_rounding_does():
    """8 x the 99.9th percentile."""
    exact = np.random.default_rng(1).normal(size=(500, 10))
    rounding = np.random.default_rng(2).normal(scale=1e-3, size=exact.shape)

    found = parity_tolerance(exact + rounding, exact)

    assert found == pytest.approx(8 * np.percentile(np.abs(rounding), 99.9))


def test_model_that_does_not_round_has_the_floor():
    """Four float32 spacings at the largest logit, 100: 4 x 2^-17."""
    exact = np.array([[100.0, 1.0]])

    assert parity_tolerance(exact.astype(np.float32), exact) == 4 * 2.0**-17


def test_row_that_is_off_is_named(batch):
    """The first bad row and how far it was."""
    logits = batch @ WEIGHT
    engine = logits.copy()
    engine[[5, 9], 3] += 0.5

    found = parity(engine, logits, batch.astype(np.float64) @ WEIGHT.astype(np.float64))

    assert (found.verdict, found.measured["first_bad_row"]) == ("failed", "r5")
    assert "off by 0.5" in found.summary


def test_tie_within_the_tolerance_may_fall_either_way():
    """Two logits that rounding cannot tell apart have no right order."""
    float64 = np.array([[1.0, 1.0 + 1e-6], [1.0, 1.5]])
    float32 = float64 + np.array([1e-6, 0])
    swapped = np.array([[1.0 + 1e-6, 1.0], [1.0, 1.5]])

    assert parity(swapped, float32, float64).verdict is Verdict.PASSED


@pytest.mark.parametrize(("which", "words"), [(0, "the graph gave NaN"), (1, "the trained model gave NaN")])
def test_nan_never_passes_parity(which, words):
    """NaN compares false with everything, so it is looked for."""
    arrays = [np.ones((3, 2)) for _ in range(3)]
    arrays[which][2, 1] = np.nan

    found = parity(*arrays)

    assert (found.verdict, found.measured["first_bad_row"], words in found.summary) == ("failed", "r2", True)


# --- golden ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels:
    """A task of 64 pixels: scaled by 255 and shifted by a mean, as trained."""

    name = "pixels"
    codec_version = 1
    mean: float = 0.5
    inputs: tuple[TensorSpec, ...] = field(default=(TensorSpec("image", "FP32", ("batch", 64)),))

    def encode(self, raw):
        """Turn bytes or uint8 into float32."""
        if len(raw) != 64:
            raise InvalidMedia(f"Pixels are 64 bytes. Got {len(raw)}.")
        return {"image": np.asarray(raw, dtype=np.float32) / 255 - np.float32(self.mean)}


@pytest.fixture
def golden():
    """Three raw inputs, their tensors and their logits, recorded with the real graph."""
    raws = list(np.random.default_rng(6).integers(0, 256, size=(3, 64), dtype=np.uint8))
    tensors = np.stack([Pixels().encode(raw)["image"] for raw in raws])
    return raws, tensors, graph_run()(tensors)


def check(task, golden, **options):
    """Run the golden check with names g0, g1, g2."""
    raws, _, logits = golden
    names = [f"g{k}" for k in range(len(raws))]
    return strict(
        check_golden(task, raws, logits, graph_run(), tolerance=1e-4, names=names, subjects=SUBJECTS, **options)
    )


def test_unchanged_task_passes(golden):
    """With and without recorded tensors."""
    assert check(Pixels(), golden).verdict is Verdict.PASSED
    assert check(Pixels(), golden, recorded_tensors=golden[1]).verdict is Verdict.PASSED


def test_changed_preprocessing_constant_is_noticed_in_the_logits(golden):
    """The mean moved by a thousandth: nobody would see it in a picture."""
    found = check(Pixels(mean=0.501), golden)

    assert found.verdict is Verdict.FAILED
    assert "Golden input g0 gives other logits than when the model was trained: off by" in found.summary


def test_changed_preprocessing_constant_is_noticed_in_the_tensors(golden):
    """Recorded tensors say where it happened."""
    found = check(Pixels(mean=0.501), golden, recorded_tensors=golden[1])

    assert "Golden input g0 is encoded differently from when the model was trained: off by up to 0.001" in found.summary


def test_input_that_cannot_be_encoded_any_more_fails(golden):
    """An error of the codec is a finding, not a crash."""
    raws, tensors, logits = golden

    found = check(Pixels(), ([raws[0], raws[1], raws[2][:63]], tensors, logits))

    assert (found.verdict, "g2 can no longer be encoded: Pixels are 64 bytes" in found.summary) == ("failed", True)


def test_damaged_record_fails(golden):
    """NaN in the record is no record."""
    raws, tensors, logits = golden
    damaged = logits.copy()
    damaged[1, 0] = np.nan

    found = check(Pixels(), (raws, tensors, damaged))

    assert (found.verdict, "g1" in found.summary) == ("failed", True)


def test_golden_check_without_examples_is_an_error(golden):
    """Nothing to compare must not pass."""
    with pytest.raises(InvalidInput, match="Got 0 examples"):
        check(Pixels(), ([], golden[1][:0], golden[2][:0]))


# --- shapes ---------------------------------------------------------------------------------------------------------


def shapes(run, rows):
    """Try the standard batch sizes."""
    return strict(check_shapes(run, rows, tolerance=1e-4, subjects=SUBJECTS))


def test_free_batch_is_proven_up_to_the_largest_size_tried(batch):
    """All sizes from 1 to 33 work."""
    found = shapes(graph_run(), batch)

    assert (found.verdict, proven_batch(found)) == (Verdict.PASSED, (1, 33))


def test_few_rows_are_repeated(batch):
    """Three rows are enough to try 33."""
    assert proven_batch(shapes(graph_run(), batch[:3])) == (1, 33)


def test_graph_that_was_traced_for_one_row_is_proven_for_one(batch):
    """A Reshape with a baked-in batch says "batch" in its interface and works for 1."""
    found = shapes(graph_run(fixed_batch=1), batch)

    assert (found.verdict, proven_batch(found)) == (Verdict.PASSED, (1, 1))
    assert "size 2 fails: The graph cannot be run" in found.summary


def test_graph_that_cannot_run_one_row_fails(batch):
    """At least one row must work."""
    found = shapes(graph_run(fixed_batch=7), batch)

    assert found.verdict is Verdict.FAILED
    with pytest.raises(InvalidInput, match="proves no batch size"):
        proven_batch(found)


def test_size_that_mixes_rows_ends_the_proven_range(batch):
    """A graph that from 32 rows on gives them in another order: the answers are right, but not each row's."""
    run = graph_run()

    found = shapes(lambda rows: run(rows)[::-1] if len(rows) >= 32 else run(rows), batch)

    assert proven_batch(found) == (1, 31)
    assert "from its answer alone" in found.summary


def test_one_wrong_size_inside_ends_the_proven_range(batch):
    """A range is proven when every size in it was tried: a batcher makes batches of 13 too."""
    run = graph_run()

    found = shapes(lambda rows: -run(rows) if len(rows) == 13 else run(rows), batch)

    assert proven_batch(found) == (1, 12)


def test_dropped_rows_and_errors_end_the_proven_range(batch):
    """One answer less, or an error of ours."""
    run = graph_run()

    def fails(rows):
        if len(rows) > 2:
            raise LightshipError("out of memory")
        return run(rows)

    assert proven_batch(shapes(lambda rows: run(rows)[: max(1, len(rows) - 1)], batch)) == (1, 1)
    assert "size 3 fails: out of memory" in shapes(fails, batch).summary


# --- latency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "asked", "verdict"),
    [
        ((0.5, 0.6), True, "passed"),
        ((1.5, 1.6), True, "failed"),
        ((0.8, 1.2), True, "undecided"),
        ((1.5, 1.6), False, "measured"),
        ((0.5, 0.6), False, "measured"),
    ],
)
def test_slower_is_refused_when_speed_was_asked_for(ratios, asked, verdict):
    """Faster, slower, no difference shown; and without the wish a figure that passes and refuses nothing."""
    timing = PairedTiming(median_interval(np.linspace(*ratios, 50)), Percentiles(2, 3), Percentiles(1, 2), 50, 5)

    found = check_latency(timing, variant="int8", speed_asked=asked, subjects=SUBJECTS, setup={"batch": 1})

    assert strict(found).verdict == verdict
    assert found.method["batch"] == 1
