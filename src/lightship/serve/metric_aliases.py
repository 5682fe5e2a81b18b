"""The figures once more under the names that Triton's and TF Serving's dashboards ask for.

The same counters, so nothing is counted twice; labels come from the registry and from fixed words, as everywhere.
What is counted by request has no version: a name's version changes while its requests go on.
Sources: triton-inference-server, docs/user_guide/metrics.md; tensorflow/serving, servables/tensorflow/util.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from lightship.serve.metrics import FigureSource, RequestFigures

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["aliases"]

_US = 1e6
_TF = ":tensorflow:serving:"
_TF_STATUS = {200: "OK", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED", 500: "INTERNAL"}
_REJECTED = (429, 503)

_BY_MODEL: tuple[tuple[str, str, Callable[[FigureSource], float]], ...] = (
    ("nv_inference_count", "Rows that were run.", lambda model: model.figures.rows),
    ("nv_inference_exec_count", "Batches that were run.", lambda model: model.figures.batches),
    ("nv_inference_pending_request_count", "Requests that wait.", lambda model: model.waiting),
    ("nv_inference_queue_duration_us", "Time of waiting.", lambda model: model.figures.queue_s.total * _US),
    ("nv_inference_compute_input_duration_us", "Time of encoding.", lambda model: model.figures.encode_s * _US),
    ("nv_inference_compute_infer_duration_us", "Time in the engine.", lambda model: model.figures.run_s * _US),
    ("nv_inference_compute_output_duration_us", "Time of decoding.", lambda model: model.figures.decode_s * _US),
)


def aliases(requests: RequestFigures, models: Iterable[FigureSource]) -> Iterator[Metric]:
    """Yield the aliases."""
    yield from _triton_requests(requests, models)
    yield from _triton_models(models)
    yield from _tf_serving(requests)


def _triton_requests(requests: RequestFigures, models: Iterable[FigureSource]) -> Iterator[Metric]:
    from prometheus_client.core import Metric

    # Triton's counters have no `_total`, so they are written as untyped.
    good = Metric("nv_inference_request_success", "Requests that were answered.", "untyped")
    bad = Metric("nv_inference_request_failure", "Requests that failed, by reason.", "untyped")
    took = Metric("nv_inference_request_duration_us", "Time from head to answer.", "untyped")
    names = sorted({model.name for model in models})
    counts, seconds = requests.counts.items(), requests.seconds.items()
    for name in names:
        of = [(status, count) for (_, model, status), count in counts if model == name]
        good.add_sample(good.name, {"model": name}, sum(count for status, count in of if status < 400))
        failed = {
            "REJECTED": sum(count for status, count in of if status in _REJECTED),
            "BACKEND": sum(count for status, count in of if status == 500),
            "CANCELED": sum(model.figures.cancelled for model in models if model.name == name),
        }
        failed["OTHER"] = sum(count for status, count in of if status >= 400) - failed["REJECTED"] - failed["BACKEND"]
        for reason, value in failed.items():
            bad.add_sample(bad.name, {"model": name, "reason": reason}, value)
        total = sum(histogram.total for (_, model), histogram in seconds if model == name)
        took.add_sample(took.name, {"model": name}, total * _US)
    yield from (good, bad, took)


def _triton_models(models: Iterable[FigureSource]) -> Iterator[Metric]:
    from prometheus_client.core import Metric

    for name, text, value_of in _BY_MODEL:
        metric = Metric(name, text, "untyped")
        for model in models:
            metric.add_sample(name, {"model": model.name, "version": model.version}, float(value_of(model)))
        yield metric


def _tf_serving(requests: RequestFigures) -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily, Metric

    count = Metric(f"{_TF}request_count", "Requests by model and status.", "untyped")
    by_status: dict[tuple[str, str], int] = {}
    for (_, model, status), value in requests.counts.items():
        if model:
            key = (model, _TF_STATUS.get(status, "INVALID_ARGUMENT"))
            by_status[key] = by_status.get(key, 0) + value
    for (model, status_name), value in by_status.items():
        count.add_sample(count.name, {"model_name": model, "status": status_name}, value)
    yield count
    latency = HistogramMetricFamily(
        f"{_TF}request_latency", "Microseconds from head to answer.", labels=("model_name", "API")
    )
    for (contract, model), histogram in requests.seconds.items():
        if model:
            latency.add_metric((model, contract), histogram.buckets(_US), histogram.total * _US)
    yield latency
