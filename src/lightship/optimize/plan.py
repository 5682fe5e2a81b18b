"""What a search tries: chains of passes on engines with options, each under one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightship.engine.machine import has_fast_bf16, has_vnni
from lightship.engine.onnx_wire import operators_of
from lightship.extensions import extension_names
from lightship.optimize.candidate import ONNX_RUNTIME
from lightship.optimize.variant_pass import VariantPass, load_pass
from lightship.types import Json

__all__ = ["Plan", "default_plans", "for_graph", "known_plans"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run the model, not tried yet.

    Attributes:
        passes: applied one after the other.
        options: of the engine, as a bundle records them.
    """

    name: str
    passes: tuple[VariantPass, ...]
    engine: str = ONNX_RUNTIME
    precision: str = "fp32"
    options: Mapping[str, Json] = field(default_factory=dict)

    @property
    def lossless(self) -> bool:
        """Whether the answers stay the same up to the rounding of float32."""
        return all(each.lossless for each in self.passes) and not self.options

    def is_of(self, names: Sequence[str]) -> bool:
        """Return whether a person who names these passes and plans means this one."""
        return self.name in names or (bool(self.passes) and all(each.name in names for each in self.passes))

    @property
    def rescues(self) -> str:
        """The pass whose answers this plan would bring nearer to the reference's, no faster; empty for others."""
        return next((str(each.rescues) for each in self.passes if hasattr(each, "rescues")), "")

    @property
    def needs_calibration(self) -> bool:
        """Whether a pass must see rows."""
        return any(each.needs_calibration for each in self.passes)


def known_plans() -> dict[str, Plan]:
    """Return every plan of the installed passes and engines, by its name, in the order in which they are tried.

    The reference on another engine costs nothing to make; then come the passes made for the engine that they run on,
    first those that see rows, last those that only help where another one fails. When the time is over, what was not
    tried is what seldom wins.
    """
    passes = [load_pass(name) for name in extension_names("passes")]
    engines = [ONNX_RUNTIME, *(name for name in extension_names("engines") if name != ONNX_RUNTIME)]
    plans = [plan for engine in engines for plan in _on_engine(engine, passes)]
    return {plan.name: plan for plan in sorted(plans, key=_promise)}


def default_plans(*, lossless_only: bool = False) -> tuple[Plan, ...]:
    """Return what is tried when nobody names anything: no pass that asks to be named, no arithmetic this CPU lacks."""
    return tuple(
        plan
        for plan in known_plans().values()
        if all(each.default for each in plan.passes) and (plan.lossless or not lossless_only) and _can_run_here(plan)
    )


def _can_run_here(plan: Plan) -> bool:
    """Return whether this CPU has the arithmetic of a plan."""
    if plan.options.get("precision") == "bf16":
        return has_fast_bf16()
    return "dynamic_quantization" not in plan.options or has_vnni()


def for_graph(plans: Sequence[Plan], graph: bytes) -> tuple[Plan, ...]:
    """Return the plans in the order in which they are tried on a graph that has passed the audit.

    Without convolutions what sees no rows comes first, with what rescues it: products of tables, texts and cells gain
    as much by int8 that is found while they run, and are made in a tenth of the time.
    """
    if any(operator.kind == "Conv" for operator in operators_of(graph)):
        return tuple(plans)
    blind = {each.name for plan in plans for each in plan.passes if not each.needs_calibration}
    return tuple(
        sorted(plans, key=lambda plan: (*_promise(plan)[:2], plan.needs_calibration and plan.rescues not in blind))
    )


def _promise(plan: Plan) -> tuple[int, int, bool, bool, bool, str]:
    """Rank a plan: the first is tried first."""
    made_for_it = sum(plan.engine != each.engines[0] for each in plan.passes)
    lossy = sum(not each.lossless for each in plan.passes)
    blind = bool(plan.passes) and not plan.needs_calibration
    return (lossy, made_for_it, plan.engine == ONNX_RUNTIME, bool(plan.rescues), blind, plan.name)


def _on_engine(engine: str, passes: Sequence[VariantPass]) -> list[Plan]:
    prefix = "" if engine == ONNX_RUNTIME else f"{engine}-"
    plans = [] if engine == ONNX_RUNTIME else [Plan(f"{engine}-fp32", (), engine)]
    if engine == "openvino":
        plans.append(Plan("openvino-bf16", (), engine, "bf16", {"precision": "bf16"}))
    plans += [
        Plan(f"{prefix}{each.name}", (each,), engine, each.precision) for each in passes if engine in each.engines
    ]
    if engine == "openvino":
        plans += [
            Plan(f"{prefix}{each.name}-dynamic", (each,), engine, "int8", {"dynamic_quantization": "int8"})
            for each in passes
            if each.precision == "int8-weights" and engine in each.engines
        ]
    return plans
