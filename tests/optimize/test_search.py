"""Which variants are proposed to the gate, and why the others are not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.engine.measure import PairedTiming
from lightship.engine.runner import load_runner
from lightship.errors import InvalidInput, Refused
from lightship.optimize.answers import count_correct, scores_of
from lightship.optimize.candidate import Candidate, Rows
from lightship.optimize.objective import Objective
from lightship.optimize.passes.int8_dynamic import Int8Dynamic
from lightship.optimize.passes.int8_static import Int8Static
from lightship.optimize.plan import Plan
from lightship.optimize.search import MOST_PROPOSED, SearchResult, measure_file, search
from lightship.optimize.settings import SearchSettings
from lightship.optimize.variant_pass import PassFailed, apply_passes
from lightship.types import Interval, Json, Silent
from lightship.validate.fidelity import FidelityBudget

SIZE = SearchSettings(objective=Objective.parse("size"), pairs=20, batches=(1, 8), threads=(1,))
LATENCY = SearchSettings(pairs=20, batches=(1, 8), threads=(1,))


@dataclass
class Giving:
    """A pass that gives what it was made with, and keeps the rows that it was shown."""

    name: str
    graph: bytes = b""
    error: Exception | None = None
    needs_calibration: bool = False
    precision: str = "fp32"
    lossless: bool = False
    default: bool = True
    engines: tuple[str, ...] = ("onnxruntime",)
    rescues: str = ""
    seen: Sequence[Mapping[str, np.ndarray]] | None = None

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the prepared graph, else what came."""
        self.seen = calibration
        if self.error:
            raise self.error
        return self.graph or graph


def changed(reference: bytes, edit) -> bytes:
    """Return the graph after ``edit(model)``."""
    model = onnx.load_from_string(reference)
    edit(model)
    return model.SerializeToString()


def set_weights(model: onnx.ModelProto, name: str, values) -> None:
    """Replace a weight by what ``values`` makes of it."""
    (tensor,) = (each for each in model.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values(numpy_helper.to_array(tensor)).astype(np.float32), name))


@pytest.fixture
def given(reference, selection, tmp_path):
    """Return a function that measures a graph as a file that somebody gave."""
    return lambda graph, settings=SIZE: measure_file(
        "mine", graph, reference=reference, selection=selection, settings=settings, folder=tmp_path
    )


def slower(reference: bytes) -> bytes:
    """Return a graph with the same answers that multiplies a large matrix on the way."""

    def edit(model: onnx.ModelProto) -> None:
        big = np.eye(512, dtype=np.float32)
        model.graph.initializer.append(numpy_helper.from_array(big, "big"))
        gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
        for step in range(40):
            model.graph.node.insert(
                len(model.graph.node) - 1,
                helper.make_node("MatMul", ["flat" if step == 0 else f"slow{step - 1}", "big"], [f"slow{step}"]),
            )
        gemm.input[0] = "slow39"

    return changed(reference, edit)


class Here:
    """Applies passes in this process, also those that are not installed."""

    def __init__(self, calibration: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._calibration = calibration

    def make(self, passes, graph: bytes, *, limit_s: float) -> bytes:
        """Return what the passes make of the graph."""
        return apply_passes(passes, graph, self._calibration)

    def close(self) -> None:
        """Hold nothing."""


@pytest.fixture
def result(reference, calibration, selection, tmp_path):
    """Return a function that searches with some passes, in the same folder each time."""

    def go(*passes, settings: SearchSettings = SIZE, named: bool = False, rows: Rows | None = None) -> SearchResult:
        return search(
            reference,
            [Plan(each.name, (each,), precision=each.precision) for each in passes],
            calibration=calibration,
            selection=rows or selection,
            settings=replace(settings, named=named),
            folder=tmp_path,
            progress=Silent(),
            maker=Here(calibration),
        )

    return go


@pytest.fixture
def run(result):
    """Return a function that searches with some passes: name -> candidate."""
    return lambda *passes, **options: {each.name: each for each in result(*passes, **options).candidates}


def noted(timing: PairedTiming, ratio: float) -> Json:
    """Return a timing in one process with another ratio."""
    return replace(timing, ratio=Interval(ratio, ratio - 0.01, ratio + 0.01, 0.95, 20)).to_json()


@pytest.mark.parametrize(("unlucky", "proposed"), [(1, True), (9, False)], ids=["one", "nine"])
def test_one_unlucky_process_of_many_hides_no_gain(result, reference, tmp_path, unlucky, proposed):
    """Processes swing; with 7 of them a single bad one was enough to keep the reference."""
    same = Giving("same", graph=changed(reference, lambda model: setattr(model, "doc_string", "same")))
    result(same, settings=LATENCY)
    ledger = tmp_path / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    (first,) = (line for line in lines if line["key"] == "pairs latency same 0")
    measured = PairedTiming.from_json(first["value"]["value"])
    for process in range(15):
        value = noted(measured, 1.3 if 0 < process <= unlucky else 0.8)
        lines.append({"key": f"pairs latency same {process}", "value": {"value": value}, "seconds": 0.1})
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))

    (found,) = result(same, settings=LATENCY).candidates

    assert found.latency.timing.processes == (15 if proposed else 7)
    assert bool(found.dropped) != proposed


def test_one_unlucky_process_does_not_choose_the_threads_of_the_reference(result, tmp_path):
    """At the wrong threads the reference was slow, and a variant that changed nothing was released as faster."""
    settings = replace(LATENCY, threads=(1, 2))
    result(Giving("same"), settings=settings)
    ledger = tmp_path / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    swept = [line for line in lines if re.fullmatch(r"(calls|sweep) reference( \d)?", line["key"])]
    for number, line in enumerate(swept):
        two = 50.0 if number == len(swept) - 1 else 33.0
        line["value"]["value"]["calls"] = [[2, 1, two], [1, 1, 48.0]]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))

    found = result(Giving("same"), settings=settings)

    assert len(swept) == 4
    assert found.reference_calls["latency"] == {"p50_ms": 33.0, "threads": 2, "batch": 1}


def test_scalars_without_rows_stay_scalars():
    """A sampling rate beside the sound: an array of one is another input, and a number without an axis is none."""
    rows = Rows({"rate": np.array([8000, 16000])}, None, "y", batched=False)

    arrays = [rows.repeated(4)["rate"], *(inputs["rate"] for _, inputs in rows.batches(8))]

    assert [(type(each), each.shape) for each in arrays] == 3 * [(np.ndarray, ())]


def test_reference_answers_all_rows(reference, selection):
    """The graph of these tests is right on every row, in whatever batches it is run."""
    runner = load_runner(reference)

    assert count_correct(runner, selection) == 90
    assert scores_of(runner, selection).shape == (90, 3)


def test_smaller_variants_are_proposed_when_size_is_asked_for(run, reference):
    """Both int8 graphs are a good deal smaller and as right."""
    found = run(Int8Dynamic(), Int8Static())

    assert [each.dropped for each in found.values()] == ["", ""]
    assert all(each.quality.correct == each.quality.rows == 90 for each in found.values())
    assert all(len(each.graph) == each.size_bytes < len(reference) for each in found.values())


def test_failed_pass_is_a_dropped_candidate(run):
    """The reason is kept, and the others go on."""
    found = run(Giving("bad", error=PassFailed("bad cannot treat this graph: why")), Int8Dynamic())

    assert found["bad"].dropped == "bad cannot treat this graph: why"
    assert found["bad"].graph == b""
    assert found["int8-dynamic"].dropped == ""


def test_pass_that_raises_anything_is_a_dropped_candidate(run):
    """A pass may be anybody's code."""
    found = run(Giving("bad", error=KeyError("weight")), Int8Dynamic())

    assert found["bad"].dropped == "bad failed: KeyError: 'weight'"
    assert found["int8-dynamic"].dropped == ""


def test_interrupt_is_not_swallowed(run):
    """Ctrl-C in a pass ends the search."""
    with pytest.raises(KeyboardInterrupt):
        run(Giving("bad", error=KeyboardInterrupt()))  # type: ignore[arg-type]


@pytest.mark.parametrize("graph", [b"no graph", b"\0"])
def test_graph_that_the_engine_does_not_run_is_dropped(run, graph):
    """What a pass gives is loaded before it is proposed."""
    found = run(Giving("bad", graph=graph))

    assert found["bad"].dropped.startswith("the engine does not run it: ")


def test_graph_that_draws_random_numbers_is_dropped(run, reference):
    """Wrong once in two hundred calls, it would be right whenever somebody looks."""

    def sometimes(model: onnx.ModelProto) -> None:
        _rename(model, "logits", "right")
        model.graph.output[0].name = "logits"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.005), "seldom"))
        model.graph.node.extend(
            [
                helper.make_node("RandomUniform", [], ["drawn"], shape=[1]),
                helper.make_node("Greater", ["drawn", "seldom"], ["often"]),
                helper.make_node("Cast", ["often"], ["kept"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Mul", ["right", "kept"], ["logits"]),
            ]
        )

    found = run(Giving("lottery", graph=changed(reference, sometimes)))

    assert found["lottery"].dropped.startswith("it draws random numbers (RandomUniform)")


def test_slower_variant_is_dropped_with_its_figures(run, reference):
    """Speed was asked for, so what is slower than the reference is no candidate, and the line says by how much."""
    found = run(Giving("slow", graph=slower(reference)), settings=LATENCY)

    assert re.match(
        r"about [\d.,]+ times the reference's latency"
        r"|not shown to be better than the reference: latency .* times as slow",
        found["slow"].dropped,
    )


def test_copy_is_not_called_smaller(run):
    """The reference itself as a variant: a tie is no gain, and the reference stays."""
    assert run(Giving("copy"))["copy"].dropped == "the same graph as reference, run in the same way"


def test_worse_answers_are_dropped_before_the_gate(run, reference):
    """A look at the gate rows is not spent on what is plainly worse."""
    wrecked = changed(reference, lambda model: set_weights(model, "dense", lambda values: values[:, ::-1]))

    assert run(Giving("wrecked", graph=wrecked))["wrecked"].dropped == "loses 66.7% accuracy on the selection rows"


def test_a_few_broken_rows_are_seen_before_the_gate(run, reference, selection):
    """Three of ninety rows twice as long: the mean cosine forgives them, and the gate would not."""
    brightness = np.sort(selection.inputs["image"].mean(axis=(1, 2, 3)))[::-1]
    limit = numpy_helper.from_array(np.float32(brightness[2:4].mean()).reshape(1, 1), "limit")
    factor = numpy_helper.from_array(np.float32(1.2).reshape(1, 1), "factor")

    def stretch(model: onnx.ModelProto) -> None:
        model.graph.initializer.extend([limit, factor, numpy_helper.from_array(np.array([1]), "columns")])
        model.graph.node[-1].output[0] = "plain"
        for node in (
            helper.make_node("ReduceMean", ["flat_image", "columns"], ["brightness"]),
            helper.make_node("Greater", ["brightness", "limit"], ["is_bright"]),
            helper.make_node("Cast", ["is_bright"], ["bright"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["bright", "factor"], ["more"]),
            helper.make_node("Mul", ["plain", "more"], ["added"]),
            helper.make_node("Add", ["plain", "added"], ["logits"]),
        ):
            model.graph.node.append(node)
        model.graph.node.insert(0, helper.make_node("Flatten", ["image"], ["flat_image"]))

    settings = replace(SIZE, budget=FidelityBudget())
    rows = replace(selection, labels=None)

    found = run(Giving("stretched", graph=changed(reference, stretch)), settings=settings, rows=rows)["stretched"]

    assert found.quality.cosine.estimate > 0.99
    assert found.dropped == "3.3% of the selection rows are broken, above the 2% allowed"


@pytest.mark.parametrize("kind", ["numbers", "tags"])
def test_numbers_and_tags_are_held_against_their_labels(reference, selection, result, kind):
    """Answers that lie in the reference's direction and err: the cosine is good, and the labels say what is lost."""
    answers = scores_of(load_runner(reference), selection)
    random = np.random.default_rng(1)
    near = answers + random.normal(size=answers.shape) * answers.std() / 10
    rows = replace(selection, labels=near if kind == "numbers" else (near > 0).astype(np.uint8), kind=kind)
    scale = {"numbers": 0.8, "tags": 1.0}[kind]
    shifted = changed(
        reference,
        lambda model: (
            set_weights(model, "dense", lambda values: values * scale),
            set_weights(
                model, "bias", lambda values: values * scale + (kind == "tags") * (answers.min() - answers.max()) / 2
            ),
        ),
    )

    found = result(Giving("shifted", graph=shifted), rows=rows)

    (bad,) = found.candidates
    assert found.reference.quality.loss < bad.quality.loss
    assert bad.quality.correct is None
    assert kind == "tags" or bad.quality.cosine.estimate > 0.9
    words = {"numbers": r"errs by [\d,.]+% more than the reference", "tags": r"loses \d+\.\d% of the tags"}
    assert re.match(words[kind] + " on the selection rows", bad.dropped), bad.dropped


def test_answers_that_are_no_numbers_are_wrong(run, reference):
    """NaN is no answer, even where ``argmax`` makes the right class of it."""
    broken = changed(reference, lambda model: set_weights(model, "bias", lambda values: values * np.nan))

    found = run(Giving("broken", graph=broken))["broken"]

    assert found.quality.correct == 0
    assert found.dropped == "loses 100.0% accuracy on the selection rows"


def test_rescue_of_what_needs_none_is_not_made(run):
    """The variant that it would replace answers well, so its minutes are left to others."""
    rescue = Giving("rescue", graph=b"never asked for", rescues="int8-dynamic")

    found = run(Int8Dynamic(), rescue)

    assert found["rescue"].dropped == "not needed: int8-dynamic answers well enough"
    assert rescue.seen is None


def test_rescue_of_what_is_slow_is_not_made(run, reference):
    """It is no faster than the variant that it would replace, and that one is behind the reference."""
    rescue = Giving("rescue", rescues="slow")

    found = run(Giving("slow", graph=slower(reference)), rescue, settings=LATENCY)

    assert re.match(
        r"not needed: it is no faster than slow, and that takes about [\d.,]+ times", found["rescue"].dropped
    )
    assert rescue.seen is None


def test_rescue_of_wrong_answers_is_made(run, reference):
    """The variant that it replaces is fast and wrong: that is what it is for."""
    wrecked = changed(reference, lambda model: set_weights(model, "dense", lambda values: values[:, ::-1]))

    found = run(Giving("wrong", graph=wrecked), replace(Giving("rescue"), rescues="wrong"))

    assert found["rescue"].dropped == "the same graph as reference, run in the same way"


def test_at_most_three_are_proposed(run, reference):
    """The gate's error rate is shared among three; the best are kept, the others say so."""
    sizes = {f"v{pad}": changed(reference, lambda m, pad=pad: _pad(m, pad)) for pad in (5, 1, 3, 2, 4)}

    found = run(*(Giving(name, graph=graph) for name, graph in sizes.items()), named=True)

    assert [name for name, each in found.items() if not each.dropped] == ["v1", "v2", "v3"]
    assert {each.dropped for each in found.values() if each.dropped} == {f"{MOST_PROPOSED} better ones are proposed"}


def _pad(model: onnx.ModelProto, count: int) -> None:
    model.doc_string = "x" * count


def test_named_variant_is_proposed_however_it_is(run, reference):
    """Who names a variant wants the gate's word on it, not the search's."""
    wrecked = changed(reference, lambda model: set_weights(model, "dense", lambda values: values[:, ::-1]))

    found = run(Giving("wrecked", graph=wrecked), settings=LATENCY, named=True)

    assert found["wrecked"].dropped == ""


def test_named_variant_that_cannot_be_made_stays_dropped(run):
    """There is nothing to propose."""
    found = run(Giving("bad", error=PassFailed("bad: why")), named=True)

    assert found["bad"].dropped == "bad: why"


def test_calibration_goes_to_those_who_ask(run, calibration):
    """A pass that needs no rows is shown none; one that does is shown exactly those that were given."""
    without, with_rows = Giving("without"), Giving("with", needs_calibration=True)

    run(without, with_rows)

    assert without.seen == ()
    assert with_rows.seen is calibration


def test_no_passes_is_no_candidates(run):
    """Nothing tried, nothing proposed."""
    assert run() == {}


def test_candidate_survives_the_disk(run):
    """What is written down and read again is the same."""
    for each in run(Int8Dynamic(), Giving("bad", error=PassFailed("why"))).values():
        assert Candidate.from_json(json.loads(json.dumps(each.to_json())), each.graph) == each


def test_given_graph_is_measured(given, reference):
    """A file is measured and proposed, whatever came out."""
    (found,) = given(slower(reference), settings=LATENCY).candidates

    assert (found.name, found.dropped, found.quality.correct) == ("mine", "", 90)
    assert found.latency.timing.ratio.estimate > 1


def endless(reference: bytes, *, batch: int | None = None) -> bytes:
    """Return the graph with a loop of 2^62 rounds before its answer; with ``batch``, only when it gets so many rows."""

    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        scalars = [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ]
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["before"], ["after"])],
            "body",
            [*scalars, helper.make_tensor_value_info("before", TensorProto.FLOAT, None)],
            [
                helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
            ],
        )
        constants = {"rounds": np.array(2**62), "start": np.array(True), "one": np.array([batch or 0])}
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
        nodes = [helper.make_node("Loop", ["rounds", "go_on", "flat"], ["looped"], body=body)]
        if batch is None:
            nodes.insert(0, helper.make_node("Identity", ["start"], ["go_on"]))
        else:
            nodes[:0] = [
                helper.make_node("Shape", ["image"], ["size"], start=0, end=1),
                helper.make_node("Equal", ["size", "one"], ["same"]),
                helper.make_node("Squeeze", ["same"], ["go_on"]),
            ]
        gemm = next(node for node in graph.node if node.op_type == "Gemm")
        gemm.input[0] = "looped"
        place = len(graph.node) - 1
        for node in reversed(nodes):
            graph.node.insert(place, node)

    return changed(reference, edit)


@pytest.fixture
def half_a_second(monkeypatch):
    """Lower the limit of a run: the real one is two minutes."""
    monkeypatch.setattr("lightship.optimize.candidate.LONGEST_RUN_S", 0.5)


@pytest.mark.usefixtures("half_a_second")
@pytest.mark.parametrize("batch", [None, 1])
def test_endless_graph_is_a_dropped_candidate(run, reference, batch):
    """On every batch, or only on that of the timing, which has no limit of its own: the others go on."""
    found = run(Giving("endless", graph=endless(reference, batch=batch)), Int8Dynamic())

    assert found["endless"].dropped.startswith("the engine does not run it: The graph ran longer than 0.5 s on a batch")
    assert found["int8-dynamic"].dropped == ""


@pytest.mark.usefixtures("half_a_second")
def test_endless_graph_that_was_given_is_refused(given, reference):
    """The file is at fault, and the message names it, the limit and the batch."""
    with pytest.raises(
        Refused, match=r"variant 'mine' is refused.*longer than 0\.5 s on a batch of image \(1, 1, 8, 8\)"
    ):
        given(endless(reference))


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for names in (*(node.input for node in model.graph.node), *(node.output for node in model.graph.node)):
        for place, name in enumerate(names):
            if name == old:
                names[place] = new
    for value in (*model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new


def _fix_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def _add_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["batch", 512]))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: _rename(m, "logits", "scores"), r"This graph: image FP32 \[\?, 1, 8, 8\] -> scores FP32"),
        (lambda m: _rename(m, "image", "x"), r"This graph: x FP32"),
        (_fix_batch, r"This graph: image FP32 \[1, 1, 8, 8\]"),
        (
            lambda m: m.graph.output.append(helper.make_tensor_value_info("flat", 1, ["batch", 512])),
            r"This graph: .*, 8, 8\] -> flat",
        ),
    ],
)
def test_graph_of_another_interface_is_refused(given, reference, edit, words):
    """It could not take the reference's place; the message shows both."""
    with pytest.raises(InvalidInput, match=rf"image FP32 \[\?, 1, 8, 8\] -> logits FP32 \[\?, 3\]\. {words}"):
        given(changed(reference, edit))


def test_search_whose_time_is_over_finds_again_what_it_found(result):
    """The second run begins late: it does nothing new, and reaches the same proposals."""
    late = replace(SIZE, minutes=0.02)
    first = result(Int8Dynamic(), Int8Static(), settings=late)

    again = result(Int8Dynamic(), Int8Static(), settings=late)

    assert [each.name for each in first.proposed]
    assert again.candidates == first.candidates


def test_graph_that_was_changed_on_the_disk_is_not_proposed(result, tmp_path):
    """What is released must be what was measured."""
    result(Int8Dynamic())
    (tmp_path / "int8-dynamic.onnx").write_bytes((tmp_path / "reference.onnx").read_bytes())

    with pytest.raises(Refused, match="is not the graph that was made and measured"):
        result(Int8Dynamic())
