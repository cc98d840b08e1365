"""What /metrics tells: of requests, of the texts that are written, of time."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.batching import Batch

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Meters:
    """requests: by path and status; first_token, whole: seconds from a request to its first piece, and to its end."""

    def __init__(self, batch: Batch):
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "awq_requests", "Requests that were answered", ("path", "status"), registry=self._registry
        )
        self.first_token = Histogram(
            "awq_first_token_seconds", "Request to its first token", buckets=SECONDS, registry=self._registry
        )
        self.whole = Histogram("awq_request_seconds", "Request to its end", buckets=SECONDS, registry=self._registry)
        self._registry.register(_OfBatch(batch))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _OfBatch(Collector):
    def __init__(self, batch: Batch):
        self._batch = batch

    def collect(self) -> Iterator[Metric]:
        batch, counts = self._batch, self._batch.counts
        yield GaugeMetricFamily("awq_slots", "Texts that can be written at once", batch.decoder.slots)
        yield GaugeMetricFamily("awq_running", "Texts that are being written", batch.running)
        yield GaugeMetricFamily("awq_waiting", "Texts that wait for a slot", batch.waiting)
        yield CounterMetricFamily("awq_prompt_tokens", "Tokens of prompts that were read", counts.read)
        yield CounterMetricFamily("awq_prompt_tokens_known", "Tokens of prompts that a slot held already", counts.known)
        yield CounterMetricFamily("awq_written_tokens", "Tokens that were written", counts.written)
        yield CounterMetricFamily("awq_steps", "Steps of the batch", counts.steps)
        yield CounterMetricFamily("awq_busy_seconds", "Time in steps", counts.busy)
        yield CounterMetricFamily("awq_failed", "Texts that ended with an error", counts.failed)
        drafted = counts.drafted
        yield CounterMetricFamily("awq_draft_proposed", "Tokens that a draft proposed", drafted.proposed)
        yield CounterMetricFamily("awq_draft_accepted", "Those of them that were the model's own", drafted.accepted)
        ended = CounterMetricFamily("awq_ended", "Texts by how they ended", labels=["how"])
        for how, count in counts.ended.items():
            ended.add_metric([how.value], count)
        yield ended
