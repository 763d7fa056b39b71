"""All benchmarks in their short form, some minutes: `python -m benchmarks`."""

from benchmarks import latency, memory, metrics, throughput

throughput.measure()
latency.measure()
memory.measure()
metrics.measure()
