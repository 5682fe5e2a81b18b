"""What a search prefers, and how long and on what it measures."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightship.engine.machine import usable_cores
from lightship.optimize.objective import Objective
from lightship.validate.fidelity import FidelityBudget

__all__ = ["SearchSettings"]


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What is preferred and how it is measured.

    Attributes:
        objective: what a variant must be better at than the reference.
        minutes: of the whole search; a pass that takes too much of them is stopped, what was not begun is said.
        batch: rows in a call whose latency counts.
        batches: rows in a call that are tried for throughput; none beyond what the model was proven for.
        pairs: most interleaved timing pairs a process.
        threads: of the engines, each tried.
        budget: how far answers may be from the reference's; None leaves that to the labels.
        most_lost: what of selection accuracy may be lost, or by how much a mean loss may grow; beyond, a look at the
            gate rows would be wasted.
        named: a person asked for these variants: what can be made is proposed, however fast it is and however it
            answers, and the gate alone decides.
    """

    objective: Objective = field(default_factory=Objective)
    minutes: float = 5.0
    batch: int = 1
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    pairs: int = 200
    threads: tuple[int, ...] = field(default_factory=lambda: tuple(sorted({1, usable_cores()})))
    budget: FidelityBudget | None = None
    most_lost: float = 0.05
    named: bool = False
