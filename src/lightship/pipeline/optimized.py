"""Optimize a released model on rows that a person gives: the result is a new version of its name, or the reference.

The release is verified as a server does it, its reference variant is searched round, at most three candidates see the
gate rows, and the first that passes is released beside the reference. Without rows only what should lose nothing is
tried. Nobody is told that a model is good because a variant of it is as good: without labels and a lowest accuracy the
new version is ``structural``, as an imported one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from lightship.bundle.manifest import REFERENCE, TaskRef
from lightship.bundle.statement import Evidence, summary_of
from lightship.data.files import sha256_hex, write_atomic
from lightship.data.home import Home
from lightship.data.parts import PARTS
from lightship.engine.machine import fingerprint, usable_cores
from lightship.engine.onnx_lookups import table_rows
from lightship.engine.runner import Runner
from lightship.engine.tuning import tuning_path, write_rates
from lightship.errors import InvalidInput
from lightship.optimize.candidate import Candidate
from lightship.optimize.objective import Objective
from lightship.optimize.search import SearchResult
from lightship.pipeline.analysis import Analysis
from lightship.pipeline.cache import StageCache, library_versions
from lightship.pipeline.given_rows import GivenRows
from lightship.pipeline.labeled_answers import answers_to_labels, require_fitting
from lightship.pipeline.labeled_rows import GivenClasses, GivenValues
from lightship.pipeline.optimize_parent import Parent, read_parent
from lightship.pipeline.optimize_request import OptimizeRequest, kind_named, plans_named
from lightship.pipeline.optimize_search import margin_of, search_variants
from lightship.pipeline.optimized_release import Passed, release_variant
from lightship.pipeline.release_report import write_optimized_report
from lightship.pipeline.search_evidence import search_evidence
from lightship.pipeline.temperature import require_temperature, temperature_of, with_temperature
from lightship.pipeline.value_analysis import ValueAnalysis
from lightship.pipeline.variant_look import GateRows, VariantLook
from lightship.registry.database import open_database
from lightship.registry.records import EvidenceRow
from lightship.tasks.row_files import LABEL, read_rows
from lightship.types import Json, Progress, Silent, ValueRange, Verdict
from lightship.validate.checks.values import Seen, proven_values
from lightship.validate.fidelity import FidelityBudget
from lightship.validate.gate import Policy, apply_policy, policy_named, require
from lightship.validate.judge import Candidate as Judged
from lightship.validate.judge import Judgement, Outcome, judge

__all__ = ["OptimizedRelease", "optimize_model"]

ALPHA = 0.05
_SEEN_ROWS = 64  # read at once to note their values
_NOT_GIVEN = "No rows were given: how far its answers are from the reference's on real inputs was not measured"


@dataclass(frozen=True, slots=True)
class OptimizedRelease:
    """What became of it.

    Attributes:
        name: of the model.
        parent: the version that was optimized.
        chosen: the variant; ``reference`` says that none was better and passed.
        version: the new one, or None: the reference stays, and there is nothing new to release.
        is_new: False when this very bundle was a version of the name already.
        alias: what this call made of it (``production``), or None.
        status: of the release: ``passed`` or ``structural``; empty without one.
        search: what was tried and measured.
        outcomes: what became of each candidate that was proposed to the gate.
        evidence: that the new release rests on.
        words: what people should know, one line each.
        report: the JSON file that keeps all of this; the page for people stands beside it (``.html``).
    """

    name: str
    parent: int
    chosen: str
    search: Mapping[str, Json]
    outcomes: tuple[Outcome, ...]
    words: tuple[str, ...]
    report: Path
    version: int | None = None
    is_new: bool = False
    alias: str | None = None
    bundle: str = ""
    release: str = ""
    signer: str = ""
    status: str = ""
    evidence: tuple[EvidenceRow, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """Return the whole for programs."""
        return {
            "name": self.name,
            "parent": self.parent,
            "chosen": self.chosen,
            "version": self.version,
            "is_new": self.is_new,
            "alias": self.alias,
            "status": self.status or None,
            "bundle": self.bundle or None,
            "release": self.release or None,
            "search": dict(self.search),
            "outcomes": [{"name": o.name, "verdict": str(o.verdict), "reason": o.reason} for o in self.outcomes],
            "evidence": [
                {"check": row.check, "verdict": str(row.verdict), "summary": row.summary, "digest": row.digest}
                for row in self.evidence
            ],
            "words": list(self.words),
            "report": str(self.report),
        }


def optimize_model(
    reference: str,
    *,
    data: Path | str | Mapping[str, np.ndarray] | None = None,
    objective: str = "latency",
    minutes: float = 5.0,
    budget: FidelityBudget | None = None,
    min_accuracy: float | None = None,
    margin: float | None = None,
    passes: Sequence[str] | None = None,
    label: str = LABEL,
    label_kind: str | None = None,
    output: str | None = None,
    temperature: Literal["report", "apply"] = "report",
    accept_unproven: bool = False,
    home: Home | Path | str | None = None,
    progress: Progress | None = None,
) -> OptimizedRelease:
    """Search for the best variant of a released model, judge it, and release it as the next version of its name.

    Args:
        reference: ``m1`` (its production), ``m1@staging`` or ``m1:3``.
        data: rows, as ``tasks.row_files`` reads them; None tries only what should lose nothing.
        objective: ``latency``, ``throughput``, ``size``, ``memory``, or weights such as ``latency=0.7,size=0.3``.
        minutes: of the search. Reading rows and the look at the gate rows come on top.
        budget: what answers must keep of the reference's; default: ``FidelityBudget()`` for rows without labels.
        min_accuracy: of rows with classes: the lower end of the accuracy must reach it. Then the release is ``passed``.
        margin: of rows with labels, what is too much to lose: of accuracy (default 0.01), of the share of right tags
            (0.01), or by how much errors of numbers may grow (0.02).
        passes: names of passes or of whole variants to try, in place of all that are worth it.
        label: the array or column of labels.
        label_kind: ``classes``, ``tags`` or ``numbers``, where dtype and shape do not tell.
        output: the output that is judged by the labels, or holds the answer, where that is not clear.
        temperature: ``apply`` puts the temperature that calibrates on selection rows into the new version, in place
            of the one that the model has; the reference gets it too if nothing better passes. Of rows with classes.
        accept_unproven: let it become production if nothing is yet; the history says who accepted it.
        home: where registry and store are; by default what LIGHTSHIP_HOME names.
        progress: hears what is done.

    Raises:
        NotFound: no such model, version, alias or data.
        InvalidInput: the data or an option cannot be used.
        BundleRefused: bytes, digests, signatures or golden examples of the release do not agree.
        Conflict: another process optimizes the same model in this home.
    """
    where = home if isinstance(home, Home) else Home(Path(home)) if home is not None else Home.from_environment()
    asked = OptimizeRequest(
        objective=Objective.parse(objective),
        minutes=minutes,
        budget=budget,
        min_accuracy=min_accuracy,
        margin=margin,
        plans=None if passes is None else plans_named(passes),
        label=label,
        label_kind=kind_named(label_kind),
        output=output,
        temperature=temperature,
        accept_unproven=accept_unproven,
        with_rows=data is not None,
    )
    progress = progress or Silent()
    progress.start("Verify the release")
    parent = read_parent(where, reference)
    if asked.calm:
        require_temperature(parent.task)
    progress.done(f"{parent.name}:{parent.version}")
    where.ensure()
    folder = where.cache / "optimize" / parent.name
    with StageCache(folder).locked():
        return _Work(where, parent, asked, data, progress).run(folder)


class _Work:
    """One call at work."""

    def __init__(
        self,
        home: Home,
        parent: Parent,
        asked: OptimizeRequest,
        data: Path | str | Mapping[str, np.ndarray] | None,
        progress: Progress,
    ) -> None:
        self._home, self._parent, self._asked, self._data = home, parent, asked, data
        self._progress = progress
        self._threads = usable_cores()
        self._words: list[str] = []
        self._gate_looks = 0
        self._about_reference: tuple[Evidence, ...] = ()

    def run(self, folder: Path) -> OptimizedRelease:
        reference = self._parent.subject.runner(threads=self._threads)
        try:
            rows = self._read_rows(reference)
            if rows is not None:
                require_fitting(rows, alpha=ALPHA)
            found = search_variants(self._parent.subject, self._asked, rows, folder=folder, progress=self._progress)
            gate = None if rows is None else self._gate(rows)
            looks, judgement, about = self._judged(gate, found)
        finally:
            reference.close()
        chosen = next((each for each in looks if each.candidate.name == judgement.chosen), None)
        if rows is not None:
            self._words += rows.words
        if not found.proposed:
            self._words.append("nothing that was tried is shown to be better than the reference")
        if chosen is None:
            return self._kept(found, judgement)
        evidence = self._evidence(gate, found, judgement, chosen, about)
        task = self._parent.manifest.task
        if self._asked.calm:
            task, evidence = with_temperature(self._parent.task, evidence)
            self._words += [each.summary for each in evidence if each.check == "calibration"]
            if chosen.candidate.name == REFERENCE and task.digest == self._parent.manifest.task.digest:
                return self._kept(found, judgement)
        if chosen.runs_alone:
            self._words.append(
                f"a server runs the rows of {chosen.candidate.name} one at a time, so the throughput that it has in "
                "batches is not had there"
            )
        passed = self._passed(gate, judgement, evidence, chosen, found, task)
        self._progress.start("Build and sign the bundle")
        registered, listed, signer = release_variant(
            self._home, self._parent.release, passed, accept_unproven=self._asked.accept_unproven
        )
        self._progress.done(f"{registered.name}:{registered.version}")
        self._keep_tuning(registered.bundle, chosen)
        return self._reported(
            OptimizedRelease(
                name=registered.name,
                parent=self._parent.version,
                chosen=judgement.chosen,
                search=found.to_json(),
                outcomes=judgement.outcomes,
                words=tuple(self._words),
                report=self._report,
                version=registered.version,
                is_new=registered.is_new,
                alias=registered.alias,
                bundle=registered.bundle,
                release=registered.release,
                signer=signer,
                status=passed.status,
                evidence=listed,
            )
        )

    # -- rows ---------------------------------------------------------------------------------------------------

    def _read_rows(self, reference: Runner) -> GivenRows | None:
        if self._data is None:
            self._words.append(
                "no rows were given (--data), so only variants that should lose nothing were tried; quantization needs "
                "rows that calibrate and judge it"
            )
            return None
        parent = self._parent
        asked, interface = self._asked, parent.subject.interface
        file = read_rows(self._data, task=parent.task, interface=interface, label=asked.label)
        if asked.min_accuracy is not None and file.labels is None:
            raise InvalidInput(
                f"`--min-accuracy` is judged on labels, and {file.source} has no {asked.label!r}. Name the array "
                "or column of the labels with `--label`, or leave the budget out."
            )
        rows = GivenRows(
            file,
            interface,
            reference,
            names=parent.task.labels,
            output=asked.output,
            kind=asked.label_kind,
            progress=self._progress,
        )
        if asked.min_accuracy is not None and rows.labels and rows.labels.kind != "classes":
            raise InvalidInput(
                f"`--min-accuracy` is of classes, and {rows.labels.words}. Leave it out; `--margin` says what is too "
                "much to lose."
            )
        if asked.calm and not (rows.labels and rows.labels.scored):
            what = rows.labels.words if rows.labels else f"{rows.source} has none"
            raise InvalidInput(f"A temperature is fitted on classes whose scores the model gives; {what}.")
        if rows.labels:
            self._words.append(rows.labels.words)
        if not rows.parts.gate:
            raise InvalidInput(f"None of the {rows.parts.given} rows of {rows.source} is left to judge. Give more.")
        if rows.bad:
            first = f"{len(rows.bad)} bad rows were skipped: {rows.bad[0].id}: {rows.bad[0].reason}"
            self._words.append(summary_of(first, most=300))
        return rows

    # -- judging ------------------------------------------------------------------------------------------------

    def _judged(
        self, gate: GateRows | None, found: SearchResult
    ) -> tuple[list[VariantLook], Judgement, tuple[Evidence, ...]]:
        """Let the gate decide; return the looks, what came of them, and the evidence about what is chosen."""
        looks = self._looks(gate, found)
        if gate is not None and looks:
            self._gate_looks = self._count_look(gate.rows, found)
        self._progress.start("Judge", len(looks))
        judgement = judge([Judged(each.candidate.name, each) for each in looks], alpha=ALPHA)
        self._progress.done(self._verdict(judgement))
        about = judgement.evidence
        if judgement.chosen == REFERENCE:
            if self._asked.calm:
                looks, about = self._reference_look(gate, found)
            if gate is not None:
                self._about_reference = self._of_reference(gate, judged=bool(found.proposed))
        return looks, judgement, about

    def _gate(self, rows: GivenRows) -> GateRows:
        labels, asked, parent = rows.labels, self._asked, self._parent
        margin = margin_of(asked, rows)
        gate = GateRows(rows, asked.budget, margin, ALPHA)
        if labels is None:
            return gate
        reference = Candidate(REFERENCE, graph=parent.subject.graph)
        if not labels.scored:
            values = GivenValues(rows, parent.task)
            return replace(gate, labeled=values, analysis=ValueAnalysis(values, reference, alpha=ALPHA, margin=margin))
        classes = GivenClasses(rows, parent.task)
        analysis = Analysis(classes, reference, alpha=ALPHA, margin=margin, temperature=temperature_of(parent.task))
        return replace(gate, labeled=classes, analysis=analysis)

    def _looks(self, gate: GateRows | None, found: SearchResult) -> list[VariantLook]:
        return [
            VariantLook(self._parent.subject, candidate, gate=gate, objective=found.objective, threads=self._threads)
            for candidate in found.proposed
        ]

    def _reference_look(
        self, gate: GateRows | None, found: SearchResult
    ) -> tuple[list[VariantLook], tuple[Evidence, ...]]:
        """Return the look at the reference itself, which is to get a temperature, and what it found beside nothing."""
        if self._parent.manifest.default != REFERENCE:
            self._words.append(
                f"no temperature was applied: nothing passed, and {self._parent.name}:{self._parent.version} runs "
                f"{self._parent.manifest.default!r}, not its reference"
            )
            return [], ()
        reference = Candidate(REFERENCE, graph=self._parent.subject.graph, precision="fp32")
        look = VariantLook(self._parent.subject, reference, gate=gate, objective=found.objective, threads=self._threads)
        evidence = look(ALPHA)
        return [look], tuple(each for each in evidence if each.check in ("golden", "shapes", "values"))

    def _of_reference(self, gate: GateRows, *, judged: bool) -> tuple[Evidence, ...]:
        """Return what people should know of the reference, which stays; the gate rows tell if they were looked at."""
        about = self._parent.subject.subjects()
        data = gate.rows.evidence(subjects=about, looks=self._gate_looks)
        if not judged or gate.rows.labels is None or gate.analysis is None:
            return (data,)
        answers = answers_to_labels(gate.rows.labels)
        for indices, _, expected in gate.rows.answered("gate", _SEEN_ROWS):
            given = expected[gate.rows.labels.output]
            answers.add(indices, gate.rows.truth(indices), given, given)
        quality = answers.quality(min_accuracy=self._asked.min_accuracy or 0.0, confidence=1 - ALPHA, subjects=about)
        reference = Candidate(REFERENCE, graph=self._parent.subject.graph)
        return (data, quality, *gate.analysis.of(reference, subjects=about))

    @staticmethod
    def _verdict(judgement: Judgement) -> str:
        if judgement.chosen != REFERENCE:
            return f"{judgement.chosen} passed"
        return "the reference stays" + "".join(f"; {each.name}: {each.verdict}" for each in judgement.outcomes)

    def _evidence(
        self,
        gate: GateRows | None,
        found: SearchResult,
        judgement: Judgement,
        chosen: VariantLook,
        looked: Sequence[Evidence],
    ) -> tuple[Evidence, ...]:
        subject = self._parent.subject
        about = subject.subjects(chosen.candidate)
        searched = search_evidence(
            found.candidates,
            judgement.outcomes,
            found=found.to_json(),
            method={"objective": dict(found.objective.weights), "minutes": self._asked.minutes},
            chosen=judgement.chosen,
            subjects=about,
        )
        evidence = [*looked, searched]
        if gate is None:
            evidence.append(Evidence("fidelity", Verdict.UNPROVEN, about, _NOT_GIVEN, {}, {"reason": "no rows"}))
        else:
            evidence.append(gate.rows.evidence(subjects=subject.subjects(), looks=self._gate_looks))
        evidence.append(self._accuracy(chosen, about))
        if gate is not None and gate.analysis is not None:
            evidence += gate.analysis.of(chosen.candidate, subjects=about, calm=self._asked.calm)
        return tuple(evidence)

    def _accuracy(self, chosen: VariantLook, about: Mapping[str, str]) -> Evidence:
        if chosen.answers is None:
            why = "No labeled rows: how often the answers are right was not measured"
            return Evidence("accuracy", Verdict.UNPROVEN, about, why, {}, {"reason": "not measured"})
        found = chosen.answers.quality(
            min_accuracy=self._asked.min_accuracy or 0.0, confidence=1 - ALPHA, subjects=about
        )
        if self._asked.min_accuracy is not None or found.verdict is Verdict.UNPROVEN:
            return found
        words = found.summary.partition(";")[0] + "; no lowest one was asked for (--min-accuracy)"
        return replace(found, verdict=Verdict.UNPROVEN, summary=words)

    def _proven_values(self, gate: GateRows | None, evidence: Sequence[Evidence]) -> Mapping[str, ValueRange]:
        """Return the values that the new version may be asked for: all that a row of any part has, at least."""
        subject = self._parent.subject
        odd = next((each for each in evidence if each.check == "values"), None)
        if gate is None or odd is None:
            return subject.interface.values
        seen = Seen()
        for row in subject.golden:
            seen.add(row)
        for part in PARTS:
            for _, inputs in gate.rows.inputs(part, _SEEN_ROWS):
                seen.add(inputs)
        proven = proven_values(odd, seen)
        known = subject.interface.values
        for name in table_rows(subject.graph).keys() & proven.keys() & known.keys():
            proven[name] = known[name]  # all rows of the table, which are more than rows ask for
        return {**known, **proven}

    def _count_look(self, rows: GivenRows, found: SearchResult) -> int:
        """Count this look: rows are known again by their inputs; a look is new with other graphs, or other labels."""
        judged = [sha256_hex(self._parent.subject.graph), *(sha256_hex(each.graph) for each in found.proposed)]
        judged.append(rows.fingerprint("gate"))
        with open_database(self._home) as registry:
            return registry.count_look(rows.parts.gate_inputs, "sha256:" + sha256_hex(" ".join(judged).encode()))

    def _passed(
        self,
        gate: GateRows | None,
        judgement: Judgement,
        evidence: tuple[Evidence, ...],
        chosen: VariantLook,
        found: SearchResult,
        task: TaskRef,
    ) -> Passed:
        """Return what is released, and under which policy. The gate has the last word, on the evidence alone."""
        asked = self._asked
        accuracy = next(each for each in evidence if each.check == "accuracy")
        proven = asked.min_accuracy is not None and accuracy.verdict is Verdict.PASSED
        policy = self._policy(gate, chosen, alpha=judgement.alpha, proven=proven)
        if chosen.candidate.name == REFERENCE:
            policy = policy.for_reference()
        require(apply_policy(policy, evidence), what=f"{self._parent.name} ({chosen.candidate.name})")
        if asked.min_accuracy is not None and not proven:
            self._words.append(f"the release is structural: {accuracy.summary}")
        assert chosen.golden is not None  # noqa: S101 - it passed
        return Passed(
            candidate=chosen.candidate,
            golden=chosen.golden,
            tolerance=chosen.tolerance,
            proven=chosen.proven,
            values=self._proven_values(gate, evidence),
            evidence=evidence,
            policy=policy,
            status="passed" if proven else "structural",
            lineage=self._lineage(gate.rows if gate else None, chosen.candidate, found),
            task=task,
        )

    def _policy(self, gate: GateRows | None, chosen: VariantLook, *, alpha: float, proven: bool) -> Policy:
        if gate is None:
            base = policy_named("structural")
            return Policy(base.name, (*base.required, "equivalence"), (*base.reported, "fidelity"))
        labels = gate.rows.labels
        if labels is not None:
            return policy_named(
                "labeled",
                min_accuracy=self._asked.min_accuracy if proven else None,
                margin=gate.margin,
                alpha=alpha,
                speed_asked=chosen.speed.asked,
                classes=labels.kind == "classes",
                scores=labels.scored,
                budget=chosen.budget,
            )
        return policy_named("fidelity", alpha=alpha, speed_asked=chosen.speed.asked, budget=chosen.budget)

    def _lineage(self, rows: GivenRows | None, candidate: Candidate, found: SearchResult) -> dict[str, Json]:
        """Return where the variant comes from: no times and no paths, so that the same work gives the same bundle."""
        resolved, theirs = self._parent.release.resolved, dict(self._parent.manifest.lineage)
        origin = theirs.get("origin", theirs)
        return {
            "parent": {"name": resolved.name, "version": resolved.version, "bundle": resolved.bundle},
            "optimized": {
                "variant": candidate.name,
                "passes": list(candidate.passes),
                "engine": candidate.engine,
                "options": dict(candidate.options),
                "objective": str(found.objective),
                "rows": None if rows is None else dict(rows.parts.fingerprints),
                "libraries": library_versions("onnx", "onnxruntime", "openvino", "nncf", "numpy"),
            },
            "origin": origin,
        }

    # -- what is kept -------------------------------------------------------------------------------------------

    def _keep_tuning(self, bundle: str, chosen: VariantLook) -> None:
        """Let servers of this home start with the batch that was found best here; they measure what they do not find.

        A batch beyond what the variant was proven for was not found for it.
        """
        found = chosen.candidate.throughput
        if found is None or chosen.batch < 2 or found.batch > chosen.batch:
            return
        path = tuning_path(
            self._home.tuning,
            bundle=bundle,
            variant=chosen.candidate.name,
            machine=str(fingerprint()["digest"]),
            threads=self._threads,  # the most that were tried, as a server names the file
        )
        write_rates(path, {found.batch: found.rows_per_s})

    @property
    def _report(self) -> Path:
        return self._home.runs / f"{self._parent.name}-optimized.json"

    def _kept(self, found: SearchResult, judgement: Judgement) -> OptimizedRelease:
        """The reference stays: an honest result, of which nothing new is released."""
        return self._reported(
            OptimizedRelease(
                name=self._parent.name,
                parent=self._parent.version,
                chosen=REFERENCE,
                search=found.to_json(),
                outcomes=judgement.outcomes,
                words=tuple(self._words),
                report=self._report,
            )
        )

    def _reported(self, result: OptimizedRelease) -> OptimizedRelease:
        write_atomic(result.report, json.dumps(result.to_json(), indent=1).encode())
        write_optimized_report(self._home, result, self._about_reference)
        return result
