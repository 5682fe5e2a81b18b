"""What a person asks of a search: checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightship.errors import InvalidInput
from lightship.extensions import extension_names
from lightship.optimize.objective import Objective
from lightship.optimize.plan import Plan, known_plans
from lightship.tasks.row_files import LABEL
from lightship.validate.fidelity import FidelityBudget
from lightship.validate.meters import KINDS, Kind

__all__ = ["OptimizeRequest", "kind_named", "plans_named"]

_MOST_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeRequest:
    """A checked request. What each field means, ``optimize_model`` says.

    Attributes:
        plans: what is tried in place of all that is worth it.
        with_rows: whether there are rows to judge on.

    Raises:
        InvalidInput: the message names the field.
    """

    objective: Objective
    minutes: float = 5.0
    budget: FidelityBudget | None = None
    min_accuracy: float | None = None
    margin: float | None = None
    plans: tuple[Plan, ...] | None = None
    label: str = LABEL
    label_kind: Kind | None = None
    output: str | None = None
    temperature: str = "report"
    accept_unproven: bool = False
    with_rows: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= _MOST_MINUTES:
            raise InvalidInput(f"`minutes` of a search must be above 0 and at most a day (1440). Got {self.minutes:g}.")
        for what, value in (("min_accuracy", self.min_accuracy), ("margin", self.margin)):
            if value is not None and not 0 < value < 1:
                raise InvalidInput(f"`{what}` must be a share between 0 and 1. Got {value:g}.")
        if self.temperature not in ("report", "apply"):
            raise InvalidInput(f"`temperature` must be 'report' or 'apply'. Got {self.temperature!r}.")
        if self.with_rows:
            return
        if self.calm:
            raise InvalidInput("A temperature is fitted on rows with classes. Give them with `--data`.")
        if self.budget or self.min_accuracy is not None or self.margin is not None:
            raise InvalidInput("A budget is judged on rows. Give them with `--data`, or leave the budget out.")

    @property
    def calm(self) -> bool:
        """Whether the temperature goes into the release."""
        return self.temperature == "apply"


def kind_named(name: str | None) -> Kind | None:
    """Return the kind of labels of this name; none for none.

    Raises:
        InvalidInput: there is no such kind.
    """
    kind = next((kind for kind in KINDS if kind == name), None)
    if name != kind:
        raise InvalidInput(f"`label_kind` must be one of {', '.join(KINDS)}. Got {name!r}.")
    return kind


def plans_named(names: Sequence[str]) -> tuple[Plan, ...]:
    """Return the plans of these names, or of the passes of these names.

    Raises:
        InvalidInput: there is no such plan or pass, or no name.
    """
    known = known_plans()
    wrong = [name for name in names if name not in known and name not in extension_names("passes")]
    if wrong or not names:
        raise InvalidInput(
            f"There is no pass or variant {wrong[0] if wrong else ''!r}. Passes: "
            f"{', '.join(extension_names('passes'))}. Variants: {', '.join(known)}."
        )
    return tuple(plan for plan in known.values() if plan.is_of(names))
