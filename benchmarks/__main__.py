"""All benchmarks in their short form, some minutes: `python -m benchmarks`."""

from benchmarks import api, latency, log_pages, memory, throughput

throughput.measure()
latency.measure()
memory.measure()
api.measure()
log_pages.measure()
