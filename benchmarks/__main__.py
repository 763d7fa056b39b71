"""All benchmarks in their short form, some minutes: `python -m benchmarks`."""

from benchmarks import api, housekeeping, latency, log_pages, memory, metrics, replay, throughput

throughput.measure()
latency.measure()
memory.measure()
api.measure()
log_pages.measure()
housekeeping.measure(attempts=1_000_000, rounds=1)
metrics.measure()
replay.measure(deliveries=100_000, rounds=1)
