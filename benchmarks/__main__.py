"""All benchmarks in their short form, some minutes: `python -m benchmarks`. Each alone: `python -m benchmarks.NAME`."""

import argparse

from benchmarks import (
    api,
    batch,
    growth,
    housekeeping,
    latency,
    latency_load,
    log_pages,
    memory,
    metrics,
    neighbours,
    outage,
    receivers,
    replay,
    throughput,
    writer,
)
from benchmarks.peers import backlog, install

argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__).parse_args()

throughput.measure()
latency.measure()
latency_load.measure(200, 5)
memory.measure(backlog=200_000)
api.measure()
log_pages.measure(tries=1_000_000, requests=50)
housekeeping.measure(attempts=1_000_000, rounds=1)
metrics.measure(pending=200_000)
replay.measure(deliveries=100_000, rounds=1)
writer.measure(seconds=2, rounds=1)
neighbours.measure(seconds=10, rounds=1, owed=200_000)
outage.measure(seconds=30)
batch.measure(rows=200_000)
growth.measure()
receivers.measure(deliveries=5_000, rounds=1, records=100)
if install.is_installed():
    backlog.measure(5_000, 1)
else:
    print("\nwithout the peers, which are not here: `python -m benchmarks.peers` fetches them")
