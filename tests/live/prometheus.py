"""A real Prometheus that scrapes one address, and its answers to queries."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
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
SCRAPE_S = 1


@dataclass(frozen=True)
class NativeSample:
    """A native histogram: counts by the upper bounds of the buckets, in seconds."""

    count: float
    sum: float
    buckets: dict[float, float]


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

    def histograms(self, query: str) -> list[tuple[Labels, NativeSample]]:
        """The native histograms of now."""
        return [(each["metric"], _sample(each["histogram"][1])) for each in self._query(query)]

    def history(self, query: str) -> list[tuple[Labels, list[NativeSample]]]:
        """All native histograms that a range holds."""
        return [
            (each["metric"], [_sample(one) for _, one in each["histograms"]])
            for each in self._query(query)
        ]

    def targets(self) -> list[dict[str, Any]]:
        """The state of the scraped address."""
        return list(self._get("targets")["activeTargets"])

    def errors(self) -> list[str]:
        """The errors of the last scrapes; empty texts for those without."""
        return [each["lastError"] for each in self.targets() if each["lastScrape"][:4] != "0001"]

    def _query(self, query: str) -> list[Any]:
        return list(self._get(f"query?{urlencode({'query': query})}")["result"])

    def _get(self, path: str) -> Any:
        with urlopen(f"http://{self._address}/api/v1/{path}", timeout=patient(10)) as answer:
            return json.load(answer)["data"]


def _sample(found: dict[str, Any]) -> NativeSample:
    buckets = {float(right): float(count) for _, _, right, count in found.get("buckets", ())}
    return NativeSample(float(found["count"]), float(found["sum"]), buckets)


@contextlib.contextmanager
def prometheus(folder: Path, scraped: str, **scrape: object) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes this address. `scrape`: more of the scrape's configuration."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    job = {
        "job_name": "agents",
        "honor_labels": True,
        "static_configs": [{"targets": [scraped]}],
        **scrape,
    }
    configuration = folder / "prometheus.yml"
    settings = {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s"}
    configuration.write_text(yaml.safe_dump({"global": settings, "scrape_configs": [job]}))
    command = [
        "prometheus",
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
        "--enable-feature=native-histograms",
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
