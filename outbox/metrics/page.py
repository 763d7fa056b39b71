"""Renders what is known for Prometheus, and answers /metrics with it, whether or not the database is there."""

import functools
import platform
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import accumulate

from aiohttp import web
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from outbox import __version__
from outbox.metrics.debt import Debt, DebtWatch
from outbox.metrics.families import FAMILIES, OTHER, Family, Kind
from outbox.metrics.reading import Reading, Readings, Values, one, together
from outbox.settings import Pooling


def add_page(
    app: web.Application,
    dsn: str,
    *,
    worst: int,
    pooling: Pooling = Pooling.AUTO,
    readings: Callable[[], Readings] | None = None,
    several: bool = False,
) -> None:
    """Add /metrics to an application, with the figures of the database and, where there are, those of dispatching.

    `worst`: how many configs are named. `several`: `readings` are, or will be, those of several workers.
    """
    watch = DebtWatch(dsn, worst=worst, pooling=pooling)

    async def answer(request: web.Request) -> web.Response:
        debt = await watch.debt()
        encode, content_type = _encoder(request.headers.get("Accept", ""))
        body = encode(_Once(metrics(readings() if readings else {}, debt, watch.age, several=several)))
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    async def run_watch(_app: web.Application) -> AsyncIterator[None]:
        watch.start()
        yield
        await watch.close()

    app.router.add_get("/metrics", answer)
    app.cleanup_ctx.append(run_watch)


def metrics(readings: Readings, debt: Debt | None, age: float, *, several: bool) -> Iterator[Metric]:
    """Yield each family that there is something to say of; `age` of the debt, or of its absence, in seconds."""
    whole: Reading = {"outbox_build_info": {f"{__version__},{platform.python_version()}": [1.0]}}
    whole |= together(readings.values())
    # Also where there are no figures: an alert on their age would else be silent just when none ever come.
    whole["outbox_figures_age_seconds"] = one(age)
    if debt:
        whole |= _of_debt(debt)
    for name, family in FAMILIES.items():
        if name in whole:
            yield _metric(family, whole[name])
    yield from _processes(list(readings) if several else [])


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # It stumbles over versions that are no numbers.
        return choose_encoder("")


class _Once(Collector):
    """What the library's encoders want: something to collect from."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of_debt(debt: Debt) -> Reading:
    figures = debt.figures
    reading: Reading = {
        "outbox_unrouted": one(figures.unrouted),
        "outbox_pending": one(figures.pending),
        "outbox_due": one(figures.due),
        "outbox_held": one(figures.held),
        "outbox_dead": one(figures.dead),
        "outbox_oldest_due_seconds": one(figures.oldest_due_s),
        "outbox_configs": one(figures.configs),
        "outbox_open_circuits": one(figures.open_circuits),
        "outbox_disabled_configs": one(figures.disabled),
        "outbox_config_oldest_due_seconds": {str(each.id): [each.oldest_due_s] for each in debt.worst},
        "outbox_figures_duration_seconds": one(debt.duration),
    }
    for name, total, own in (
        ("outbox_config_pending", figures.pending, {str(each.id): each.pending for each in debt.worst}),
        ("outbox_config_due", figures.due, {str(each.id): each.due for each in debt.worst}),
        ("outbox_config_dead", figures.dead, {str(each.id): each.dead for each in debt.worst}),
    ):
        counts = own | {OTHER: total - sum(own.values())}
        reading[name] = {config_id: [float(count)] for config_id, count in counts.items()}
    return reading


def _metric(family: Family, values: Values) -> Metric:
    match family.kind:
        case Kind.COUNTER:
            counter = CounterMetricFamily(family.name, family.meaning, labels=family.labels)
            for labels, [value] in values.items():
                counter.add_metric(_split(labels), value)
            return counter
        case Kind.GAUGE:
            gauge = GaugeMetricFamily(family.name, family.meaning, labels=family.labels)
            for labels, [value] in values.items():
                gauge.add_metric(_split(labels), value)
            return gauge
        case Kind.HISTOGRAM:
            histogram = HistogramMetricFamily(family.name, family.meaning, labels=family.labels)
            names = [*(str(bound) for bound in family.bounds), "+Inf"]
            for labels, [total, *counts] in values.items():
                histogram.add_metric(_split(labels), list(zip(names, accumulate(counts), strict=True)), total)
            return histogram


def _split(labels: str) -> list[str]:
    return labels.split(",") if labels else []


def _processes(pids: list[int]) -> Iterable[Metric]:
    """Return memory, processor time and open files: of these workers by number, without any of this process."""
    if not pids:
        return ProcessCollector(registry=None).collect()
    families: dict[str, Metric] = {}
    for number, pid in enumerate(pids, start=1):
        for found in ProcessCollector(pid=functools.partial(int, pid), registry=None).collect():
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            family.samples += [Sample(each.name, {"worker": str(number)}, each.value) for each in found.samples]
    return families.values()
