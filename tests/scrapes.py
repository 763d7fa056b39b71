"""Scrapes for tests: what a page of metrics says, read with the parser of Prometheus' own library."""

import urllib.request
from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, ...], float]
"""By the name of the series and the values of its labels, in the order of the labels' names."""


def samples(page: str) -> Samples:
    """Return all that a page in the text format says."""
    return of_families(text_string_to_metric_families(page))


def of_families(families: Iterable[Metric]) -> Samples:
    """Return the samples of parsed families."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def openmetrics_families(page: str) -> Iterable[Metric]:
    """Return the families of a page in the stricter format."""
    found: Iterable[Metric] = openmetrics.text_string_to_metric_families(page)  # type: ignore[no-untyped-call]
    return found


def scrape(port: int) -> Samples:
    """Ask a process on loopback."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return samples(answer.read().decode())
