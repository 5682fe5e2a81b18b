"""Validate: one look at the gate rows, evidence about exact bytes, and the gate's decision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightship.bundle.arrays import array_from_npy, npy_from_array
from lightship.bundle.manifest import REFERENCE, TaskRef
from lightship.bundle.statement import Evidence
from lightship.data.files import sha256_hex
from lightship.errors import GateRefused
from lightship.optimize.candidate import Candidate
from lightship.pipeline.bench import Bench, settings_json
from lightship.pipeline.cache import Finished, code_digest, library_versions
from lightship.pipeline.look import Look
from lightship.pipeline.stages.optimize import Optimized
from lightship.pipeline.stages.prepare import Prepared
from lightship.pipeline.stages.train import Trained
from lightship.pipeline.temperature import with_temperature
from lightship.registry.database import open_database
from lightship.tasks.image_classification import ImageClassification
from lightship.types import Json, ValueRange, Verdict
from lightship.validate.checks.shapes import proven_batch
from lightship.validate.gate import Decision, apply_policy
from lightship.validate.judge import Outcome

__all__ = ["Validated", "validate"]

_HELD_OUT_PER_CLASS = 1
_MOST_HELD_OUT = 20


@dataclass(frozen=True)
class Validated:
    """What the gate decided, and on which evidence.

    Attributes:
        decision: the gate's.
        chosen: name of the variant that would be, or is, released.
        variant: that variant, with the way to run it.
        task: the task as the bundle will carry it.
        policy: JSON form of the policy that was applied.
        evidence: about the chosen variant, the reference and the rows.
        outcomes: what became of each candidate.
        proven_batch: smallest and largest batch size that was shown to be right.
        proven_values: by input, the values that were.
        tolerance: of the reference against PyTorch, in logits.
        gate_looks: how often these gate rows were looked at, this time included.
        created: when the decision was made, RFC 3339.
    """

    finished: Finished
    decision: Decision
    chosen: str
    variant: Candidate
    task: TaskRef
    policy: Mapping[str, Json]
    evidence: tuple[Evidence, ...]
    outcomes: tuple[Outcome, ...]
    proven_batch: tuple[int, int]
    proven_values: Mapping[str, ValueRange]
    tolerance: float
    gate_looks: int
    created: str

    @property
    def headlines(self) -> tuple[str, ...]:
        """The decision for people: one sentence, then why, each in one line."""
        name = "the reference" if self.chosen == REFERENCE else self.chosen
        if not self.decision.released:
            return (f"The gate refuses {name} ({self.decision.verdict}).", *self.decision.reasons)
        found = {each.check: each for each in self.evidence}
        lines = [f"The gate lets {name} through. {found['accuracy'].summary}."]
        if self.chosen != REFERENCE:
            lines += [found["noninferiority"].summary, found["latency"].summary]
        lines += [f"{each.name} was not taken: {each.reason}" for each in self.outcomes if each.name != self.chosen]
        return (*lines, found["search"].summary)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the decision with its evidence: what a release rests on, whichever run of the stage made it."""
        return sha256_hex((self.finished.path / "validated.json").read_bytes())

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
            "optimized": optimized.digest,
            "task": prepared.task.config(),
            "rows": prepared.split.fingerprints["gate"],
            "gate": settings_json(gate),
            "must_pass": optimized.must_pass,
            "code": code_digest(
                *("validate", "engine", "tasks", "pipeline/look.py", "pipeline/analysis.py"),
                *("pipeline/search_evidence.py", "pipeline/stages/validate.py", "pipeline/temperature.py"),
            ),
            "libraries": library_versions("onnxruntime", "numpy"),
        },
        lambda folder, _: _work(bench, prepared, trained, optimized, folder),
    )
    found = json.loads((finished.path / "validated.json").read_bytes())
    return Validated(
        finished=finished,
        decision=_decision(found["decision"]),
        chosen=found["chosen"],
        variant=Candidate.from_json(found["variant"], b""),
        task=TaskRef.of(ImageClassification.from_config(found["task"])),
        policy=found["policy"],
        evidence=tuple(_evidence(each) for each in found["evidence"]),
        outcomes=tuple(Outcome(o["name"], Verdict(o["verdict"]), o["reason"]) for o in found["outcomes"]),
        proven_batch=tuple(found["proven_batch"]),
        proven_values={name: ValueRange(**values) for name, values in found["proven_values"].items()},
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


def _work(bench: Bench, prepared: Prepared, trained: Trained, optimized: Optimized, folder: Path) -> None:
    look = Look(bench, prepared, trained, optimized)
    looks = _count_look(bench, prepared, trained, optimized)
    bench.progress.start("Judge on the gate rows", 5)
    judgement = look.judgement()
    chosen = look.pick(judgement)
    bench.progress.advance(note=f"chosen: {chosen.name}")
    shapes = look.shapes(chosen)
    values = look.values(chosen, shapes)
    evidence = (
        look.data(looks),
        look.accuracy(chosen),
        look.parity(),
        look.golden(),
        shapes,
        values,
        look.overfitting(),
        *look.analysis(chosen),
        look.search(judgement, chosen),
        *look.evidence_about(judgement, chosen),
    )
    task = TaskRef.of(prepared.task)
    if bench.recipe.gate.temperature == "apply":
        task, evidence = with_temperature(prepared.task, evidence)
    policy = look.policy(judgement, chosen)
    decision = apply_policy(policy, evidence)
    bench.progress.done(f"{chosen.name}: {decision.verdict}")

    (folder / "chosen.onnx").write_bytes(chosen.graph)
    (folder / "logits.npy").write_bytes(npy_from_array(chosen.logits))
    _keep_rows(prepared, folder / "rows.json")
    _keep_held_out(prepared, folder / "held-out")
    found = {
        "decision": asdict(decision),
        "chosen": chosen.name,
        "variant": chosen.variant.to_json(),
        "policy": policy.to_json(),
        "evidence": [_evidence_json(each) for each in evidence],
        "outcomes": [{"name": o.name, "verdict": o.verdict, "reason": o.reason} for o in judgement.outcomes],
        "proven_batch": proven_batch(shapes) if shapes.verdict is Verdict.PASSED else (1, 1),
        "proven_values": {name: asdict(proven) for name, proven in look.proven_values(values).items()},
        "task": dict(task.config),
        "tolerance": look.tolerance,
        "gate_looks": looks,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / "validated.json").write_text(json.dumps(found, indent=1))


def _count_look(bench: Bench, prepared: Prepared, trained: Trained, optimized: Optimized) -> int:
    """Count this look: gate rows are known again by their inputs; a look is new with other graphs, or other labels."""
    judged = [sha256_hex(trained.reference), *(sha256_hex(c.graph) for c in optimized.proposed)]
    judged.append(prepared.split.fingerprints["gate"])
    inputs = sorted({sha256_hex(prepared.task.identity(row.raw)) for row in prepared.rows("gate")})
    with open_database(bench.home) as registry:
        return registry.count_look(
            sha256_hex(" ".join(inputs).encode()), "sha256:" + sha256_hex(" ".join(judged).encode())
        )


def _keep_rows(prepared: Prepared, path: Path) -> None:
    """Note which row each line of the logits answers, so that two versions can be compared row by row."""
    rows = prepared.rows("gate")
    found = {
        "rows": [sha256_hex(prepared.task.identity(row.raw)) for row in rows],
        "labels": [row.label for row in rows],
    }
    path.write_text(json.dumps(found))


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
