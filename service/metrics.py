"""Prometheus metrics of one app, in seconds and bytes. No globals: two apps can live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SLICE_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
_SLICE_CHAINS = (1, 2, 4, 8, 16, 32, 64, 128)
REJECTION_REASONS = ("queue_full", "deadline", "too_much", "draining", "not_ready")
CANCELLATION_STAGES = ("queued", "running")
RELOAD_RESULTS = ("loaded", "failed")


class Metrics:
    """What an operator watches; `render` is the body of `/metrics`.

    Counting is safe from any thread; rendering is the event loop's.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._of_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}  # a look-up by labels is slow
        self._http(registry)
        self._scheduling(registry)
        self._models(registry)
        # A label that has not happened yet shows as 0: an alert on its rate works from the first event on.
        for counter, values in (
            (self.rejected, REJECTION_REASONS),
            (self.cancelled, CANCELLATION_STAGES),
            (self.reloads, RELOAD_RESULTS),
        ):
            for value in values:
                counter.labels(value)

    def _http(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("rbm_requests_total", "Requests answered.", ["endpoint", "code"], registry=registry)
        self.request_seconds = Histogram(
            "rbm_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            ["endpoint"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self.decode_seconds = Histogram(
            "rbm_decode_seconds",
            "Decoding the images or arrays of one body.",
            buckets=_REQUEST_SECONDS[:10],
            registry=registry,
        )
        self.received_bytes = Counter("rbm_received_bytes_total", "Bytes of request bodies.", registry=registry)
        self.sent_bytes = Counter("rbm_sent_bytes_total", "Bytes of answers' bodies.", registry=registry)

    def _scheduling(self, registry: CollectorRegistry) -> None:
        self.queue_wait_seconds = Histogram(
            "rbm_queue_wait_seconds",
            "From a job's admission to its first slice.",
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self.queue_depth = Gauge("rbm_queue_depth", "Accepted jobs that have not begun.", registry=registry)
        self.queue_seconds = Gauge("rbm_queue_seconds", "Accepted work, in seconds.", registry=registry)
        self.running_chains = Gauge("rbm_running_chains", "Chains of accepted jobs.", registry=registry)
        self.steps = Counter("rbm_steps_total", "Chain-steps done: one sweep of one chain.", registry=registry)
        self.slice_seconds = Histogram(
            "rbm_slice_seconds", "One call of the engine.", buckets=_SLICE_SECONDS, registry=registry
        )
        self.slice_chains = Histogram(
            "rbm_slice_chains", "Chains advanced by one call.", buckets=_SLICE_CHAINS, registry=registry
        )
        self.rejected = Counter("rbm_rejected_total", "Jobs refused at admission.", ["reason"], registry=registry)
        self.cancelled = Counter(
            "rbm_cancelled_total", "Jobs whose client left or whose deadline passed.", ["stage"], registry=registry
        )
        self.failed = Counter("rbm_failed_total", "Accepted jobs that the engine failed on.", registry=registry)

    def _models(self, registry: CollectorRegistry) -> None:
        self.model_info = Gauge(
            "rbm_model_info", "1 for each version that is served.", ["name", "version", "sha256"], registry=registry
        )
        self.model_loaded_seconds = Gauge(
            "rbm_model_loaded_timestamp_seconds", "When a model's version was swapped in.", ["name"], registry=registry
        )
        self.reloads = Counter("rbm_model_reloads_total", "Versions loaded or refused.", ["result"], registry=registry)
        self.bad_versions = Gauge("rbm_model_bad_versions", "Versions on disk that do not verify.", registry=registry)

    def answered(self, route: str, status: int, seconds: float, num_bytes: int) -> None:
        """Counts a request that is over."""
        requests, durations = self._of_route.get((route, status)) or self._find_route(route, status)
        requests.inc()
        durations.observe(seconds)
        self.sent_bytes.inc(num_bytes)

    def _find_route(self, route: str, status: int) -> tuple[Counter, Histogram]:
        found = self.requests.labels(route, str(status)), self.request_seconds.labels(route)
        self._of_route[route, status] = found
        return found

    def render(self) -> bytes:
        """The text format of Prometheus, of media type `CONTENT_TYPE`."""
        return generate_latest(self.registry)
