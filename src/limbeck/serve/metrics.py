"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """A registry of its own, so that two servers in one process count apart."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "limbeck_requests", "Requests answered", ("endpoint", "status"), registry=registry
        )  # exposed as limbeck_requests_total
        self.seconds = Histogram(
            "limbeck_request_seconds",
            "From the first byte to the last",
            ("endpoint",),
            buckets=SECONDS,
            registry=registry,
        )
        self.scored = Counter("limbeck_tokens_scored", "Tokens that were asked about", registry=registry)
        self.read = Counter("limbeck_tokens_read", "Tokens that the model read to score", registry=registry)
        self.generated = Counter("limbeck_tokens_generated", "Tokens that were sampled", registry=registry)
        self.batch_sequences = Histogram(
            "limbeck_batch_sequences", "Sequences in a forward pass", buckets=SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "limbeck_batch_seconds", "Seconds of a forward pass, the head included", buckets=SECONDS, registry=registry
        )
        self.queue = Gauge("limbeck_queue_requests", "Requests that wait or run", registry=registry)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        self.requests.labels(endpoint, str(status)).inc()
        self.seconds.labels(endpoint).observe(seconds)

    def batch(self, *, sequences: int, tokens: int, places: int, seconds: float) -> None:
        self.batch_sequences.observe(sequences)
        self.batch_seconds.observe(seconds)
        self.read.inc(tokens)
        self.scored.inc(places)

    def text(self) -> bytes:
        return generate_latest(self.registry)
