"""What a server counts. The hot path adds to plain numbers; Prometheus' form is made when somebody asks.

Labels take their values from the registry and from fixed words, never from a request, so that no client can make
series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

__all__ = ["FigureSource", "Histogram", "ModelFigures", "RequestFigures", "registry_of"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts values into fixed buckets."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = _SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_all(self, values: Iterable[float]) -> None:
        """Count values."""
        bounds, counts = self.bounds, self.counts
        total = self.total
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            total += value
        self.total = total

    def merge(self, other: Histogram) -> None:
        """Count what another has counted, into the same buckets."""
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def buckets(self, scale: float = 1.0) -> list[tuple[str, float]]:
        """Return the cumulative buckets in Prometheus' form, their bounds times ``scale``."""
        counts, cumulated, result = list(self.counts), 0, []
        for bound, count in zip((*(str(bound * scale) for bound in self.bounds), "+Inf"), counts, strict=True):
            cumulated += count
            result.append((bound, float(cumulated)))
        return result


@dataclass(slots=True)
class ModelFigures:
    """What one model version did."""

    batches: int = 0
    rows: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
    encode_s: float = 0.0
    run_s: float = 0.0
    decode_s: float = 0.0
    batch_rows: Histogram = field(default_factory=lambda: Histogram(tuple(float(n) for n in _ROWS)))
    queue_s: Histogram = field(default_factory=Histogram)

    def sent(self, *, rows: int) -> None:
        """Count a batch that was sent to the worker."""
        self.batches += 1
        self.rows += rows
        self.batch_rows.add(rows)

    def queued(self, seconds: Iterable[float]) -> None:
        """Count how long the requests of a batch waited before it was sent."""
        self.queue_s.add_all(seconds)

    def ran(self, encode_us: int, run_us: int, decode_us: int) -> None:
        """Count the time of a batch in the worker."""
        self.encode_s += encode_us / 1e6
        self.run_s += run_us / 1e6
        self.decode_s += decode_us / 1e6


class RequestFigures:
    """Requests by contract, model and status class, with their times."""

    def __init__(self) -> None:
        self._seconds: defaultdict[tuple[str, str, int], Histogram] = defaultdict(Histogram)

    def add(self, contract: str, model: str, status: int, seconds: float) -> None:
        """Count an answered request. ``contract`` and ``model`` are bounded words, empty when there was none."""
        one = self._seconds[contract, model, status]
        one.counts[bisect_left(_SECONDS, seconds)] += 1
        one.total += seconds

    @property
    def counts(self) -> dict[tuple[str, str, int], int]:
        """How many there were, by contract, model and status."""
        return {key: sum(one.counts) for key, one in list(self._seconds.items())}

    @property
    def seconds(self) -> dict[tuple[str, str], Histogram]:
        """How long they took, by contract and model."""
        found: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        for (contract, model, _), one in list(self._seconds.items()):
            found[contract, model].merge(one)
        return found


class FigureSource(Protocol):
    """A model version, as far as its figures go."""

    name: str
    version: str
    figures: ModelFigures

    @property
    def deaths(self) -> int:
        """Its workers that died or were replaced."""

    @property
    def ready(self) -> bool:
        """Whether it answers."""

    @property
    def fell_back(self) -> bool:
        """Whether its reference answers for a variant that fails here."""

    @property
    def waiting(self) -> int:
        """Requests in its queue."""

    @property
    def running(self) -> int:
        """Requests in its worker."""


class ChangeFigures(Protocol):
    """What became of the changes of a running server."""

    reloads: int
    failures: int

    @property
    def degraded(self) -> str:
        """Why the registry cannot be followed; empty if it can."""


class _Collector:
    def __init__(
        self, requests: RequestFigures, models: Callable[[], Iterable[FigureSource]], changes: ChangeFigures
    ) -> None:
        self._requests = requests
        self._models_now = models
        self._models: tuple[FigureSource, ...] = ()
        self._changes = changes

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        from lightship.serve.metric_aliases import aliases

        self._models = tuple(self._models_now())

        count = CounterMetricFamily("lightship_requests", "Answered requests.", labels=("contract", "model", "status"))
        for (contract, model, status), value in self._requests.counts.items():
            count.add_metric((contract, model, str(status)), value)
        yield count
        seconds = HistogramMetricFamily(
            "lightship_request_seconds", "From a request's head to its answer.", labels=("contract", "model")
        )
        for labels, histogram in self._requests.seconds.items():
            seconds.add_metric(labels, histogram.buckets(), histogram.total)
        yield seconds
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()
        yield from self._change_figures()
        yield from aliases(self._requests, self._models)

    def _change_figures(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield CounterMetricFamily("lightship_reloads", "References that moved.", value=self._changes.reloads)
        yield CounterMetricFamily(
            "lightship_failed_reloads", "Versions that could not be taken over.", value=self._changes.failures
        )
        yield GaugeMetricFamily(
            "lightship_degraded", "1 while the registry cannot be followed.", value=float(bool(self._changes.degraded))
        )

    def _gauges(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        for name, text, attribute in (
            ("lightship_model_ready", "1 when the model answers.", "ready"),
            ("lightship_model_fell_back", "1 when its reference answers for a variant that fails here.", "fell_back"),
            ("lightship_queue_requests", "Requests that wait for the model.", "waiting"),
            ("lightship_running_requests", "Requests in the model's worker.", "running"),
        ):
            gauge = GaugeMetricFamily(name, text, labels=("model", "version"))
            for model in self._models:
                gauge.add_metric((model.name, model.version), float(getattr(model, attribute)))
            yield gauge

    def _counters(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        for name, text, attribute in (
            ("lightship_batches", "Batches sent to the worker.", "batches"),
            ("lightship_rows", "Rows sent to the worker.", "rows"),
            ("lightship_refused_requests", "Requests refused: queue full or model not ready.", "refused"),
            ("lightship_expired_requests", "Requests whose deadline passed.", "expired"),
            ("lightship_cancelled_requests", "Requests whose client went.", "cancelled"),
            ("lightship_encode_seconds", "Time spent on encoding raw inputs.", "encode_s"),
            ("lightship_run_seconds", "Time spent in the engine.", "run_s"),
            ("lightship_decode_seconds", "Time spent on decoding outputs.", "decode_s"),
        ):
            counter = CounterMetricFamily(name, text, labels=("model", "version"))
            for model in self._models:
                counter.add_metric((model.name, model.version), float(getattr(model.figures, attribute)))
            yield counter
        deaths = CounterMetricFamily(
            "lightship_worker_deaths", "Workers that died or hung.", labels=("model", "version")
        )
        for model in self._models:
            deaths.add_metric((model.name, model.version), model.deaths)
        yield deaths

    def _histograms(self) -> Iterator[Metric]:
        from prometheus_client.core import HistogramMetricFamily

        for name, text, attribute in (
            ("lightship_batch_rows", "Rows of a batch.", "batch_rows"),
            ("lightship_queue_seconds", "How long requests waited.", "queue_s"),
        ):
            family = HistogramMetricFamily(name, text, labels=("model", "version"))
            for model in self._models:
                histogram: Histogram = getattr(model.figures, attribute)
                family.add_metric((model.name, model.version), histogram.buckets(), histogram.total)
            yield family


def registry_of(
    requests: RequestFigures, models: Callable[[], Iterable[FigureSource]], changes: ChangeFigures
) -> CollectorRegistry:
    """Return a Prometheus registry of its own for one server's figures."""
    from prometheus_client.registry import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(requests, models, changes))
    return registry
