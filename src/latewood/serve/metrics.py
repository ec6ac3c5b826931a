"""What a monitor wants to know, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latewood.serve.jobs import Job

_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters, histograms and gauges in a registry of their own: two services in one process don't mix."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests answered.", "method", "route", "status")
        self._jobs = self._counter("jobs", "Changes of the model that have ended.", "kind", "state")
        self._seconds = self._histogram("request_seconds", "Time to answer.", _SECONDS, "route")
        self._inputs = self._histogram("batch_inputs", "Inputs in one call of the model.", _INPUTS)

    def batch(self, inputs: int) -> None:
        self._inputs.observe(inputs)

    def job(self, job: Job) -> None:
        self._jobs.labels(job.kind, job.state).inc()

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """A gauge that is read when someone asks for it."""
        Gauge(name, about, namespace="latewood", registry=self._registry).set_function(read)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def metered(self, app: ASGIApp) -> ASGIApp:
        """The application with its requests counted and timed. Only names of routes are kept: paths have no end."""

        async def count(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status, began = 500, time.perf_counter()

            async def noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._requests.labels(method, route, str(status)).inc()
                self._seconds.labels(route).observe(time.perf_counter() - began)

        return count

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, namespace="latewood", registry=self._registry)

    def _histogram(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, about, labels, namespace="latewood", registry=self._registry, buckets=buckets)
