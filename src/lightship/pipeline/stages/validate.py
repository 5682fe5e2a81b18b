"""Validate: one look at the gate rows, evidence about exact bytes, and the gate's decision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightship.bundle.arrays import array_from_npy, npy_from_array
from lightship.bundle.manifest import REFERENCE, TaskRef
from lightship.bundle.statement import TASK_SUBJECT, Evidence
from lightship.data.files import sha256_hex
from lightship.engine.runner import EngineOptions, Runner, load_runner
from lightship.errors import GateRefused
from lightship.optimize.search import logits_of
from lightship.pipeline.bench import Bench, settings_json
from lightship.pipeline.cache import Finished, code_digest, library_versions
from lightship.pipeline.stages.optimize import Optimized
from lightship.pipeline.stages.prepare import Prepared
from lightship.pipeline.stages.train import Trained, require_torch
from lightship.registry.database import open_database
from lightship.types import Json, Verdict
from lightship.validate.checks.accuracy import check_accuracy
from lightship.validate.checks.data import check_data
from lightship.validate.checks.golden import check_golden
from lightship.validate.checks.overfitting import check_overfitting
from lightship.validate.checks.parity import check_parity, parity_tolerance
from lightship.validate.checks.shapes import check_shapes, proven_batch
from lightship.validate.gate import Decision, Policy, apply_policy, policy_named
from lightship.validate.judge import Candidate as Judged
from lightship.validate.judge import Judgement, Outcome, judge
from lightship.validate.logits import labels_of

__all__ = ["Validated", "validate"]

_HELD_OUT_PER_CLASS = 1
_MOST_HELD_OUT = 20


@dataclass(frozen=True)
class Validated:
    """What the gate decided, and on which evidence.

    Attributes:
        decision: the gate's.
        chosen: name of the variant that would be, or is, released.
        precision: of that variant.
        task: the task as the bundle will carry it.
        policy: JSON form of the policy that was applied.
        evidence: about the chosen variant, the reference and the rows.
        outcomes: what became of each candidate.
        proven_batch: smallest and largest batch size that was shown to be right.
        tolerance: of the reference against PyTorch, in logits.
        gate_looks: how often these gate rows were looked at, this time included.
        created: when the decision was made, RFC 3339.
    """

    finished: Finished
    decision: Decision
    chosen: str
    precision: str
    task: TaskRef
    policy: Mapping[str, Json]
    evidence: tuple[Evidence, ...]
    outcomes: tuple[Outcome, ...]
    proven_batch: tuple[int, int]
    tolerance: float
    gate_looks: int
    created: str

    @property
    def headlines(self) -> tuple[str, ...]:
        """The decision for people: one sentence, then why, each in one line."""
        if not self.decision.released:
            return (f"The gate refuses {self.chosen} ({self.decision.verdict}).", *self.decision.reasons)
        found = {each.check: each for each in self.evidence}
        lines = [f"The gate lets {self.chosen} through. {found['accuracy'].summary}."]
        if self.chosen != REFERENCE:
            lines += [found["noninferiority"].summary, found["latency"].summary]
        lines += [f"{each.name} was not taken: {each.reason}" for each in self.outcomes if each.name != self.chosen]
        return (*lines, found["search"].summary)

    @cached_property
    def graph(self) -> bytes:
        """The bytes of the chosen graph."""
        return (self.finished.path / "chosen.onnx").read_bytes()

    @cached_property
    def logits(self) -> np.ndarray:
        """The chosen variant's logits on the gate rows: float32 (rows, classes)."""
        return array_from_npy((self.finished.path / "logits.npy").read_bytes(), what="logits.npy")

    @property
    def held_out(self) -> Path:
        """A folder with a few gate rows as images, named by class, to try the model with."""
        return self.finished.path / "held-out"

    def to_json(self) -> dict[str, Json]:
        """Return the decision and the evidence for programs."""
        return {
            "verdict": self.decision.verdict,
            "reasons": list(self.decision.reasons),
            "chosen": self.chosen,
            "candidates": [{"name": o.name, "verdict": o.verdict, "reason": o.reason} for o in self.outcomes],
            "evidence": [_evidence_json(each) for each in self.evidence],
            "gate_looks": self.gate_looks,
        }


def validate(bench: Bench, prepared: Prepared, trained: Trained, optimized: Optimized) -> Validated:
    """Judge the proposed variants on the gate rows, or take the decision that was made on the same bytes.

    A refusal is a result like any other: it is kept, and asking again does not look at the gate rows again.

    Raises:
        GateRefused: the variant that was named could not be made, so there is nothing to judge.
    """
    _require_named(optimized)
    gate = bench.recipe.gate
    finished = bench.cache.run(
        "validate",
        {
            "reference": sha256_hex(trained.reference),
            "trained": trained.finished.key,
            "optimized": optimized.finished.key,
            "task": prepared.task.config(),
            "rows": prepared.split.fingerprints["gate"],
            "gate": settings_json(gate),
            "must_pass": optimized.must_pass,
            "code": code_digest("validate", "engine", "tasks", "pipeline/stages/validate.py"),
            "libraries": library_versions("onnxruntime", "numpy"),
        },
        lambda folder, _: _work(bench, prepared, trained, optimized, folder),
    )
    found = json.loads((finished.path / "validated.json").read_bytes())
    return Validated(
        finished=finished,
        decision=_decision(found["decision"]),
        chosen=found["chosen"],
        precision=found["precision"],
        task=_task_ref(prepared),
        policy=found["policy"],
        evidence=tuple(_evidence(each) for each in found["evidence"]),
        outcomes=tuple(Outcome(o["name"], Verdict(o["verdict"]), o["reason"]) for o in found["outcomes"]),
        proven_batch=tuple(found["proven_batch"]),
        tolerance=found["tolerance"],
        gate_looks=found["gate_looks"],
        created=found["created"],
    )


def _require_named(optimized: Optimized) -> None:
    if optimized.must_pass and not optimized.proposed:
        why = "; ".join(f"{each.name}: {each.dropped}" for each in optimized.candidates)
        raise GateRefused(
            f"The variant that the recipe names is not there to be judged. {why}. "
            "Name another one, or set `optimize.variant` to 'auto' or 'reference'."
        )


def _task_ref(prepared: Prepared) -> TaskRef:
    return TaskRef(prepared.task.name, prepared.task.codec_version, prepared.task.config())


def _work(bench: Bench, prepared: Prepared, trained: Trained, optimized: Optimized, folder: Path) -> None:
    judging = _Judging(bench, prepared, trained, optimized)
    looks = _count_look(bench, prepared, trained, optimized)
    bench.progress.start("Judge on the gate rows", 5)
    judgement = judging.judgement()
    chosen = judging.pick(judgement)
    bench.progress.advance(note=f"chosen: {chosen.name}")
    evidence = (
        judging.data(looks),
        judging.accuracy(chosen),
        judging.parity(),
        judging.golden(),
        judging.shapes(chosen),
        judging.overfitting(),
        judging.search(chosen),
        *judging.evidence_about(judgement, chosen),
    )
    policy = judging.policy(chosen)
    decision = apply_policy(policy, evidence)
    bench.progress.done(f"{chosen.name}: {decision.verdict}")

    (folder / "chosen.onnx").write_bytes(chosen.graph)
    (folder / "logits.npy").write_bytes(npy_from_array(chosen.logits))
    _keep_held_out(prepared, folder / "held-out")
    shapes = next(each for each in evidence if each.check == "shapes")
    found = {
        "decision": asdict(decision),
        "chosen": chosen.name,
        "precision": chosen.precision,
        "policy": policy.to_json(),
        "evidence": [_evidence_json(each) for each in evidence],
        "outcomes": [{"name": o.name, "verdict": o.verdict, "reason": o.reason} for o in judgement.outcomes],
        "proven_batch": proven_batch(shapes) if shapes.verdict is Verdict.PASSED else (1, 1),
        "tolerance": judging.tolerance,
        "gate_looks": looks,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / "validated.json").write_text(json.dumps(found, indent=1))


def _count_look(bench: Bench, prepared: Prepared, trained: Trained, optimized: Optimized) -> int:
    """Count this look at the gate rows; a look is new when other bytes are judged."""
    judged = [sha256_hex(trained.reference), *(sha256_hex(c.graph) for c in optimized.proposed)]
    with open_database(bench.home) as registry:
        return registry.count_look(
            prepared.split.fingerprints["gate"], "sha256:" + sha256_hex(" ".join(judged).encode())
        )


@dataclass(frozen=True, slots=True)
class _Judgeable:
    """A graph with its answers to the gate rows."""

    name: str
    precision: str
    graph: bytes
    logits: np.ndarray
    subjects: Mapping[str, str]


class _Judging:
    """The checks of one look, over the same rows and the same loaded graphs."""

    def __init__(self, bench: Bench, prepared: Prepared, trained: Trained, optimized: Optimized) -> None:
        require_torch(needed_for="Comparing the graph with the trained model")
        from lightship.train.export import torch_outputs

        self._bench, self._prepared, self._trained, self._optimized = bench, prepared, trained, optimized
        self._gate = bench.recipe.gate
        self._speed_asked = not optimized.must_pass and bench.recipe.optimize.objective == "latency"
        self._images, self._truth = prepared.images("gate"), prepared.labels("gate")
        self._float32, self._float64 = torch_outputs(trained.model.module(), self._images)
        self.tolerance = parity_tolerance(self._float32, self._float64)
        task = {TASK_SUBJECT: _task_ref(prepared).digest}
        reference = {"reference": sha256_hex(trained.reference)}
        self._reference = _Judgeable(
            REFERENCE, "fp32", trained.reference, self._run(trained.reference), {**task, **reference}
        )
        self._candidates = [
            _Judgeable(
                each.name,
                each.precision,
                each.graph,
                self._run(each.graph),
                {**task, **reference, each.name: sha256_hex(each.graph)},
            )
            for each in optimized.proposed
        ]

    def _run(self, graph: bytes) -> np.ndarray:
        runner = _loaded(graph)
        try:
            return logits_of(runner, self._images)
        finally:
            runner.close()

    def judgement(self) -> Judgement:
        """Let the candidates pass, or not, against the reference."""
        timings = {each.name: each for each in self._optimized.proposed}
        setup: dict[str, Json] = {"batch": self._bench.recipe.optimize.batch, "engine": "onnxruntime", "threads": 1}
        return judge(
            self._truth,
            self._reference.logits,
            [Judged(c.name, c.logits, c.subjects, timings[c.name].timing, setup) for c in self._candidates],
            labels=self._prepared.task.labels,
            margin=self._gate.margin,
            alpha=1 - self._gate.confidence,
            speed_asked=self._speed_asked,
            named=self._named(),
        )

    def _named(self) -> str | None:
        return self._candidates[0].name if self._optimized.must_pass else None

    def pick(self, judgement: Judgement) -> _Judgeable:
        """Return the graph that would be released; a named one that fails is still the one to be refused."""
        wanted = judgement.chosen
        return next((each for each in self._candidates if each.name == wanted), self._reference)

    def evidence_about(self, judgement: Judgement, chosen: _Judgeable) -> Sequence[Evidence]:
        """Return the evidence that compares the chosen variant with the reference."""
        return next((o.evidence for o in judgement.outcomes if o.name == chosen.name), ())

    def policy(self, chosen: _Judgeable) -> Policy:
        """Return what the chosen variant must show."""
        candidates_share = 1 if self._optimized.must_pass else 3
        policy = policy_named(
            "standard",
            min_accuracy=self._gate.min_accuracy,
            margin=self._gate.margin,
            alpha=(1 - self._gate.confidence) / candidates_share,
            confidence=self._gate.confidence,
            speed_asked=self._speed_asked,
            overfitting_required=self._gate.overfitting == "require",
        )
        return policy.for_reference() if chosen.name == REFERENCE else policy

    def data(self, looks: int) -> Evidence:
        """The rows, and how often the gate part was looked at."""
        split = self._prepared.split
        return check_data(
            class_counts=split.class_counts,
            labels=self._prepared.task.labels,
            duplicates=split.duplicates,
            conflicts=split.conflicts,
            bad=[(row.id, row.reason) for row in self._prepared.bad],
            gate_looks=looks,
            subjects=self._reference.subjects,
        )

    def accuracy(self, chosen: _Judgeable) -> Evidence:
        """Accuracy and F1 of what would be released."""
        return check_accuracy(
            self._truth,
            labels_of(chosen.logits),
            labels=self._prepared.task.labels,
            min_accuracy=self._gate.min_accuracy,
            subjects=chosen.subjects,
            confidence=self._gate.confidence,
        )

    def parity(self) -> Evidence:
        """The reference graph against the trained model."""
        rows = [self._prepared.dataset.ids[index] for index in self._prepared.split.gate]
        return check_parity(
            self._reference.logits, self._float32, self._float64, rows=rows, subjects=self._reference.subjects
        )

    def golden(self) -> Evidence:
        """Today's preprocessing against the answers that were recorded when the model was trained."""
        golden = self._trained.golden
        runner = _loaded(self._trained.reference)
        return check_golden(
            self._prepared.task,
            golden.files,
            golden.logits,
            lambda images: runner.run({"image": images})["logits"],
            tolerance=self.tolerance,
            names=golden.names,
            subjects=self._reference.subjects,
        )

    def shapes(self, chosen: _Judgeable) -> Evidence:
        """Batch sizes that the chosen graph answers as it answers single rows."""
        runner = _loaded(chosen.graph)
        return check_shapes(
            lambda images: runner.run({"image": images})["logits"],
            self._images,
            tolerance=self.tolerance,
            subjects=chosen.subjects,
        )

    def search(self, chosen: _Judgeable) -> Evidence:
        """What was tried, how fast each variant is against the reference, and why each other one lost."""
        optimize = self._bench.recipe.optimize
        tried: list[Json] = [
            {**each.to_json(), "sha256": sha256_hex(each.graph)} for each in self._optimized.candidates
        ]
        lost = "; ".join(f"{c.name}: {c.dropped}" for c in self._optimized.candidates if c.dropped)
        return Evidence(
            check="search",
            verdict=Verdict.PASSED,
            subjects=chosen.subjects,
            summary=f"{len(tried)} variants tried" + (f". {lost}" if lost else ""),
            measured={"candidates": tried, "reference_correct": self._optimized.reference_correct},
            method={"objective": optimize.objective, "pairs": optimize.pairs, "batch": optimize.batch, "threads": 1},
        )

    def overfitting(self) -> Evidence:
        """Training against validation accuracy."""
        scores = self._trained.scores
        return check_overfitting(
            train_right=scores["train_correct"],
            train_rows=scores["train_rows"],
            validation_right=scores["validation_correct"],
            validation_rows=scores["validation_rows"],
            limit=self._gate.overfitting_limit,
            subjects=self._reference.subjects,
            confidence=self._gate.confidence,
        )


def _loaded(graph: bytes) -> Runner:
    return load_runner(graph, options=EngineOptions(threads=1))


def _keep_held_out(prepared: Prepared, folder: Path) -> None:
    folder.mkdir()
    taken: dict[str, int] = {}
    for row in prepared.rows("gate"):
        if taken.get(row.label, 0) < _HELD_OUT_PER_CLASS and len(taken) < _MOST_HELD_OUT:
            taken[row.label] = taken.get(row.label, 0) + 1
            suffix, data = prepared.task.golden(row.raw)
            number = prepared.task.labels.index(row.label)
            safe = "".join(char if char.isalnum() else "_" for char in row.label)[:40]
            (folder / f"class-{number}-{safe}{suffix}").write_bytes(data)


def _decision(found: dict[str, Any]) -> Decision:
    required = tuple((check, Verdict(verdict)) for check, verdict in found["required"])
    return Decision(Verdict(found["verdict"]), tuple(found["reasons"]), required)


def _evidence_json(evidence: Evidence) -> dict[str, Json]:
    return {
        "check": evidence.check,
        "verdict": evidence.verdict,
        "subjects": dict(evidence.subjects),
        "summary": evidence.summary,
        "measured": dict(evidence.measured),
        "method": dict(evidence.method),
    }


def _evidence(found: dict[str, Any]) -> Evidence:
    return Evidence(**{**found, "verdict": Verdict(found["verdict"])})
