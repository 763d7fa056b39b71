"""All benchmarks in their short form, some minutes: `python -m benchmarks`."""

from benchmarks import housekeeping, latency, memory, throughput

throughput.measure()
latency.measure()
memory.measure()
housekeeping.measure(attempts=1_000_000, rounds=1)
