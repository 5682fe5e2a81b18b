"""How large a batch and each free dimension may be: by fixed ladders, until one fails or costs too much CPU time."""

from __future__ import annotations

from collections.abc import Mapping

from lightship.engine.difference import largest_difference
from lightship.errors import LightshipError
from lightship.imports.trial_rows import equal, stack
from lightship.imports.trial_spread import floor_of
from lightship.imports.tried_graph import TriedGraph
from lightship.tasks.task import Tensors
from lightship.tasks.tensors import BATCH
from lightship.types import Json

__all__ = ["Sizes"]

_LADDER = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 128, 129, 256, 512)


class Sizes:
    """Tries the sizes of one graph.

    Args:
        allowed: by output, how far a row's answer in a batch may be from its answer alone.

    Attributes:
        tried: every size that was tried and what was wrong with it, for the evidence.
    """

    def __init__(self, graph: TriedGraph, allowed: Mapping[str, float]) -> None:
        self._graph = graph
        self._allowed = allowed
        self.tried: list[Json] = []

    def proven(self, rows: list[Tensors], alone: list[Tensors]) -> dict[str, tuple[int, int]]:
        """Return the proven range of each free dimension of the inputs, by the engine's names."""
        proven: dict[str, tuple[int, int]] = {}
        batch = self._proven_batch(rows, alone) if self._graph.batched else 1
        rows_at_once = min(batch, 2)
        for dim in self._graph.start:
            if dim in self._graph.leader:
                continue
            proven[dim] = self._proven_size(dim, rows=rows_at_once)
            if proven[dim] == (self._graph.start[dim],) * 2 and self._tie(dim, rows=rows_at_once):
                proven[dim] = self._proven_size(dim, rows=rows_at_once)
        for dim, leader in self._graph.leader.items():
            proven.pop(dim, None)
            self._graph.words.append(f"{dim} must be as large as {leader}")
        batch, proven = self._proven_corner(batch, proven)
        if self._graph.batched:
            proven |= {dim: (1, batch) for dim in self._graph.first if isinstance(dim, str)}
        return proven

    def _proven_batch(self, rows: list[Tensors], alone: list[Tensors]) -> int:
        """Return the largest batch in which every row gets the answer that it gets alone."""
        most = self._graph.most(next(iter(self._graph.first)))
        if most > 1 and (why := self._mixes_rows(rows)):
            self.tried.append({"dimension": BATCH, "size": len(rows[:3]), "problem": why})
            self._graph.words.append(f"rows run one at a time: {why}")
            return 1
        self._graph.run(rows[0], rows=1)
        cost_s = self._graph.cpu_s
        # Every size where that is cheap, else those for which kernels differ; the first failure ends it.
        whole = cost_s * most * (most + 1) / 2 <= self._graph.bounds.batch_cpu_s / 2
        sizes = [size for size in range(2, most + 1) if whole or size in _LADDER or size == most]
        proven = 1
        for size in sizes:
            if cost_s * size > self._graph.bounds.batch_cpu_s:
                self._graph.words.append(f"{_rows(proven)}: {size} would cost {cost_s * size:.0f} s of CPU time")
                break
            why = self._batch_problem([rows[index % len(rows)] for index in range(size)], alone)
            self.tried.append({"dimension": BATCH, "size": size, "problem": why or None})
            if why:
                if proven == 1:
                    why += " (badly conditioned inputs? Then give real rows: --golden)"
                self._graph.words.append(f"{_rows(proven)}: {size} rows fail, {why}")
                break
            proven = size
        return proven

    def _mixes_rows(self, rows: list[Tensors]) -> str:
        """Say how a row's answer depends on the rows beside it; "" if it does not."""
        others = [
            self._graph.draw(self._graph.start, number=100 + number, style=self._graph.style) for number in range(2)
        ]
        beside = [rows[1 % len(rows)], rows[2 % len(rows)]]
        if all(equal(a, b) for a, b in zip(beside, others, strict=True)):
            return ""
        try:
            first = self._graph.run(stack([rows[0], *beside]), rows=3)
            second = self._graph.run(stack([rows[0], *others]), rows=3)
        except LightshipError as exc:
            return f"three rows cannot be run together ({exc})"
        for name, array in first.items():
            off = largest_difference(second[name][:1], array[:1])
            if off > self._allowed[name]:
                return (
                    f"output {name!r} of a row changes by {off:.3g} with the rows beside it, allowed are "
                    f"{self._allowed[name]:.3g} (dynamic quantization, or a sum over the batch)"
                )
        return ""

    def _batch_problem(self, batch: list[Tensors], alone: list[Tensors]) -> str:
        try:
            together = self._graph.run(stack(batch), rows=len(batch))
        except LightshipError as exc:
            return str(exc)
        for name, array in together.items():
            if array.shape[:1] != (len(batch),):
                return f"{len(batch)} rows gave {name!r} of shape {list(array.shape)}"
            for index in range(len(batch)):
                single = alone[index % len(alone)][name]
                off = largest_difference(array[index : index + 1], single)
                if off > self._allowed[name]:
                    return (
                        f"row {index} of {name!r} is {off:.3g} off its answer alone, allowed {self._allowed[name]:.3g}"
                    )
        return ""

    def _proven_size(self, dim: str, *, rows: int) -> tuple[int, int]:
        """Return the range round the start in which this dimension can have any size, the others as at the start."""
        start, most = self._graph.start[dim], max(self._graph.start[dim], self._graph.most(dim))
        ladder = sorted({*(size for size in _LADDER if size <= most), start, most, min(start + 1, most)})
        low = high = start
        cost_s = 0.0
        for size in (size for size in ladder if size > start):
            if cost_s * size / high > self._graph.bounds.batch_cpu_s / 2:
                self._graph.words.append(f"{dim} ends at {high}: {size} would cost too much CPU time")
                break
            if self._size_problem(dim, size, rows=rows):
                high = self._edge(dim, high, size, rows=rows)
                break
            high, cost_s = size, self._graph.cpu_s
        for size in sorted({*(size for size in ladder if size < start), max(start - 1, 1)}, reverse=True):
            if size >= low:
                continue
            if self._size_problem(dim, size, rows=rows):
                low = self._edge(dim, low, size, rows=rows)
                break
            low = size
        return low, high

    def _tie(self, dim: str, *, rows: int) -> bool:
        """Find the dimensions that only change together with this one: a file need not name them alike."""
        start = self._graph.start[dim]
        others = [
            d for d, size in self._graph.start.items() if d != dim and size == start and d not in self._graph.leader
        ]
        for step in (start + 1, max(start - 1, 1)):
            together = {*others}
            if step == start or self._sizes_problem(self._at(step, {dim, *together}), rows=rows):
                continue
            for other in others:
                if not self._sizes_problem(self._at(step, {dim, *together} - {other}), rows=rows):
                    together.discard(other)
            self._graph.leader |= dict.fromkeys(together, dim)
            return bool(together)
        return False

    def _at(self, size: int, dims: set[str]) -> dict[str, int]:
        """Return the start's sizes, with another one for some dimensions."""
        return {**self._graph.start, **dict.fromkeys(dims, size)}

    def _edge(self, dim: str, good: int, bad: int, *, rows: int) -> int:
        """Return the size next to the first that fails, by halving."""
        while abs(good - bad) > 1:
            middle = (good + bad) // 2
            if self._size_problem(dim, middle, rows=rows):
                bad = middle
            else:
                good = middle
        return good

    def _size_problem(self, dim: str, size: int, *, rows: int) -> str:
        tied = {other for other, leader in self._graph.leader.items() if leader == dim}
        problem = self._sizes_problem(self._at(size, {dim, *tied}), rows=rows)
        self.tried.append({"dimension": dim, "size": size, "problem": problem or None})
        return problem

    def _sizes_problem(self, sizes: Mapping[str, int], *, rows: int) -> str:
        """Try these sizes with so many rows, each of which must get the answer that it gets alone."""
        try:
            batch = [self._graph.draw(sizes, number=number, style=self._graph.style) for number in range(max(rows, 1))]
            alone = [self._graph.run(batch[0], rows=1)]
            if not self._graph.batched or rows < 2:
                return ""
            together = self._graph.run(stack(batch), rows=rows)
        except LightshipError as exc:
            return str(exc).partition(". ")[0]
        for name, array in together.items():
            if array.shape[:1] != (rows,):
                return f"{rows} rows gave {name!r} of shape {list(array.shape)}"
            allowed = max(self._allowed[name], floor_of([answer[name] for answer in alone]))
            for index, answer in enumerate(alone):
                off = largest_difference(array[index : index + 1], answer[name])
                if off > allowed:
                    return f"row {index} of {name!r} is {off:.3g} off its answer alone, allowed {allowed:.3g}"
        return ""

    def _proven_corner(self, batch: int, proven: dict[str, tuple[int, int]]) -> tuple[int, dict[str, tuple[int, int]]]:
        """Shrink the ranges until everything at its largest runs together, in the time that is allowed."""
        if not proven:
            return batch, proven
        proven = dict(proven)
        while True:
            sizes = {dim: proven[self._graph.leader.get(dim, dim)][1] for dim in self._graph.start}
            problem = self._sizes_problem(sizes, rows=1)
            cost_s = self._graph.cpu_s
            if not problem and cost_s <= self._graph.bounds.batch_cpu_s:
                break
            dim = max(proven, key=lambda name: proven[name][1] / self._graph.start[name])
            low, high = proven[dim]
            if high <= self._graph.start[dim]:
                break  # everything is at its start, which ran
            proven[dim] = (low, max(self._graph.start[dim], high // 2))
            self._graph.words.append(
                f"{dim} ends at {proven[dim][1]}: with all sizes at their largest, {problem or 'too slow'}"
            )
        while batch > 1:
            if cost_s * batch <= self._graph.bounds.batch_cpu_s and not self._sizes_problem(sizes, rows=batch):
                break
            batch //= 2
            self._graph.words.append(f"{_rows(batch)}: more would take too long or fail at {_listed(sizes)}")
        together: dict[str, Json] = {**sizes, **({BATCH: batch} if self._graph.batched else {})}
        self.tried.append({"dimension": "all together", "size": together, "problem": None})
        return batch, proven


def _rows(most: int) -> str:
    return "rows run one at a time" if most == 1 else f"batches end at {most} rows"


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
