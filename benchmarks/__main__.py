"""All benchmarks in their short form, some minutes: `python -m benchmarks`."""

from benchmarks import (
    api,
    growth,
    housekeeping,
    latency,
    log_pages,
    memory,
    metrics,
    neighbours,
    receivers,
    replay,
    throughput,
    writer,
)

throughput.measure()
latency.measure()
memory.measure()
api.measure()
log_pages.measure()
housekeeping.measure(attempts=1_000_000, rounds=1)
metrics.measure()
replay.measure(deliveries=100_000, rounds=1)
writer.measure(seconds=2, rounds=1)
neighbours.measure(seconds=10, rounds=1, owed=200_000)
growth.measure()
receivers.measure(deliveries=5_000, rounds=1, records=100)
