"""A real Prometheus that scrapes metrics, and its answers to queries."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.live.targets import until
from tests.patience import patient

Labels = dict[str, str]
Job = dict[str, object]
SCRAPE_S = 1


@dataclass(frozen=True)
class Program:
    """A Prometheus to run. `native_by_job`: native histograms are chosen there, as in 3.9."""

    path: str = "prometheus"
    native_by_job: bool = False

    def features(self, *, native: bool) -> str:
        """What it is asked for when it starts."""
        by_flag = native and not self.native_by_job
        return ",".join(["exemplar-storage", *(["native-histograms"] if by_flag else [])])

    def job(self, job: Job, *, native: bool) -> Job:
        """The job as this version reads it."""
        return {**job, "scrape_native_histograms": native} if self.native_by_job else job


DEBIANS = Program()


@dataclass(frozen=True)
class NativeSample:
    """A native histogram: counts by the upper bounds of the buckets, in seconds."""

    count: float
    sum: float
    buckets: dict[float, float]


@dataclass(frozen=True)
class Exemplar:
    """One sample that is shown beside a histogram. `ended_ms`: since 1970."""

    labels: Labels
    value: float
    ended_ms: int


class Prometheus:
    """A running server."""

    def __init__(self, address: str) -> None:
        self._address = address

    def is_ready(self) -> bool:
        """True once it answers."""
        try:
            with urlopen(f"http://{self._address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, ConnectionError):
            return False

    def value(self, query: str) -> float | None:
        """The single value of a query; None if there is none."""
        found = self._query(query)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def values(self, query: str) -> list[tuple[Labels, float]]:
        """All values, with their labels."""
        return [(each["metric"], float(each["value"][1])) for each in self._query(query)]

    def figures(self, query: str) -> list[tuple[Labels, float]]:
        """All values, with their labels; of native histograms the number of samples."""
        return [
            (each["metric"], float(each["value"][1] if "value" in each else _count(each)))
            for each in self._query(query)
        ]

    def histograms(self, query: str) -> list[tuple[Labels, NativeSample]]:
        """The native histograms of now."""
        return [(each["metric"], _sample(each["histogram"][1])) for each in self._query(query)]

    def history(self, query: str) -> list[tuple[Labels, list[NativeSample]]]:
        """All native histograms that a range holds."""
        return [
            (each["metric"], [_sample(one) for _, one in each["histograms"]])
            for each in self._query(query)
        ]

    def exemplars(self, query: str) -> list[tuple[Labels, list[Exemplar]]]:
        """The exemplars of all series of a query, however old."""
        asked = urlencode({"query": query, "start": 0, "end": 4_000_000_000})
        return [
            (each["seriesLabels"], [_exemplar(one) for one in each["exemplars"]])
            for each in self._get(f"query_exemplars?{asked}")
        ]

    def label_values(self, label: str, selector: str) -> list[str]:
        """The values that a label has in the series of a selector."""
        return list(self._get(f"label/{label}/values?{urlencode({'match[]': selector})}"))

    def targets(self) -> list[dict[str, Any]]:
        """The state of the scraped address."""
        return list(self._get("targets")["activeTargets"])

    def alerts(self) -> dict[str, dict[str, Any]]:
        """The state of all alerts of the rules, by name."""
        (group,) = self._get("rules")["groups"]
        return {rule["name"]: rule for rule in group["rules"]}

    def errors(self, job: str) -> list[str]:
        """The errors of a job's last scrapes; empty texts for those without."""
        return [
            each["lastError"]
            for each in self.targets()
            if each["labels"]["job"] == job and each["lastScrape"][:4] != "0001"
        ]

    def _query(self, query: str) -> list[Any]:
        return list(self._get(f"query?{urlencode({'query': query})}")["result"])

    def _get(self, path: str) -> Any:
        with urlopen(f"http://{self._address}/api/v1/{path}", timeout=patient(10)) as answer:
            return json.load(answer)["data"]


def _count(found: dict[str, Any]) -> str:
    return str(found["histogram"][1]["count"])


def _sample(found: dict[str, Any]) -> NativeSample:
    buckets = {float(right): float(count) for _, _, right, count in found.get("buckets", ())}
    return NativeSample(float(found["count"]), float(found["sum"]), buckets)


def _exemplar(found: dict[str, Any]) -> Exemplar:
    return Exemplar(found["labels"], float(found["value"]), round(1000 * found["timestamp"]))


def scrape_job(name: str, *scraped: str, **more: object) -> Job:
    """Scrape these addresses, whose pods keep their own labels. `more`: of the configuration."""
    return {
        "job_name": name,
        "honor_labels": True,
        "static_configs": [{"targets": list(scraped)}],
        **more,
    }


@contextlib.contextmanager
def prometheus(
    folder: Path,
    scraped: str,
    *rules: Path,
    program: Program = DEBIANS,
    native: bool = True,
    **scrape: object,
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes this address. `scrape`: more of the scrape's configuration."""
    jobs = [scrape_job("agents", scraped, **scrape)]
    with running_prometheus(folder, jobs, *rules, program=program, native=native) as running:
        yield running


@contextlib.contextmanager
def running_prometheus(
    folder: Path,
    jobs: Sequence[Job],
    *rules: Path,
    program: Program = DEBIANS,
    native: bool = True,
) -> Iterator[Prometheus]:
    """Run a Prometheus with these scrapes, and with the rules of these files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    configuration = folder / "prometheus.yml"
    each = f"{SCRAPE_S}s"
    settings = {"scrape_interval": each, "scrape_timeout": each, "evaluation_interval": each}
    scrapes = [program.job(job, native=native) for job in jobs]
    whole = {"global": settings, "rule_files": [*map(str, rules)], "scrape_configs": scrapes}
    configuration.write_text(yaml.safe_dump(whole))
    command = [
        program.path,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
        f"--enable-feature={program.features(native=native)}",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stderr=output, stdout=output) as server,
    ):
        try:
            running = Prometheus(address)
            until(
                lambda: server.poll() is not None or running.is_ready(),
                "Prometheus",
                seconds=patient(30),
            )
            assert server.poll() is None, log.read_text()
            yield running
        finally:
            server.kill()
