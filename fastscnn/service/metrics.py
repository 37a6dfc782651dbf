"""What `/metrics` tells, in Prometheus' text format; a registry per application."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

#: Seconds; a stage takes from half a millisecond (decode of a thumbnail) to seconds (50 MP).
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counts answers by status, and seconds by stage."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        PlatformCollector(registry=self._registry)
        ProcessCollector(registry=self._registry)
        self._answers = Counter(
            "fastscnn_answers", "Answers to /v1/segment", ["status"], registry=self._registry
        )
        self._stages = Histogram(
            "fastscnn_stage_seconds",
            "Time of pictures that were segmented: wait, decode, network, encode",
            ["stage"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._pixels = Counter(
            "fastscnn_pixels", "Pixels that were labelled", registry=self._registry
        )
        at_once = Gauge(
            "fastscnn_requests_at_once",
            "Requests sending, waiting or under way",
            registry=self._registry,
        )
        at_once.set_function(waiting)

    def answered(self, status: int) -> None:
        self._answers.labels(str(status)).inc()

    def segmented(self, pixels: int, seconds: dict[str, float]) -> None:
        self._pixels.inc(pixels)
        for stage, value in seconds.items():
            self._stages.labels(stage).observe(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
