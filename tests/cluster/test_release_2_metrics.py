"""A real Prometheus reads the release as its administrator lets it: what the reports have."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from devcluster.waiting import wait_until
from latencyprobe.commands.pki import Authority
from latencyprobe.domain.histogram import FIRST_BUCKET, position_of
from latencyprobe.domain.identities import AGENT_NAME
from tests.cluster.agents_tls import newest_report
from tests.cluster.manifests import SERVER_PORT, server_pod
from tests.cluster.release import AGENT_NAMESPACE, LEASE, Release
from tests.cluster.shop import Shop
from tests.live.bucket_table import bucket_table
from tests.live.filled_boards import FilledBoards
from tests.live.prometheus import (
    Exemplar,
    Labels,
    NativeSample,
    Prometheus,
    running_prometheus,
    scrape_job,
)
from tests.unit.boards import PanelQuery, queries
from tools.helm.chart import NAMESPACE

REQUESTS = 400
PROBE = "metered"
SLOW = "slow"
SLOW_TARGETS = {"pods": 1, "containers": 1, "nodes": 1, "readyNodes": 1}
LIMIT_MS, READ_DELAY_MS = 100, 300
AGENT_PORT, OPERATOR_PORT = 9346, 9347
QUANTILES = {"p50Ns": 0.5, "p90Ns": 0.9, "p99Ns": 0.99}

# Panels that may be empty here, and the reason. Each has figures in tests/live/test_prometheus.py.
MAY_BE_EMPTY = {
    "probe: Events in a second (A)": "nothing was lost, late or held back",
    "probe: Dropped packets in a second (A)": "no packet was dropped",
    "probe: Waiting that has not ended (A)": "each request is answered at once",
    "probe: Age of the oldest (A)": "each request is answered at once",
}
OF_OPERATOR = "latencyprobe_operator_"

Buckets = dict[int, int]
Figures = dict[tuple[str, str], Buckets]
Histograms = list[tuple[Labels, NativeSample]]


@dataclass
class Scraped:
    """A namespace that is measured, and the Prometheus that scrapes the release."""

    shop: Shop
    prometheus: Prometheus
    jobs: dict[str, str]
    """By the name of a node: the job that scrapes its agent."""

    @property
    def release(self) -> Release:
        return self.shop.release

    def exchange(self) -> dict[str, Any]:
        """Have pods of each node ask those of the other; the status that has all requests."""
        self.shop.cluster.apply(probe(self.shop.namespace))
        return self.shop.exchange(PROBE, REQUESTS)

    def keep_asking(self) -> None:
        """Have pods of each node ask those of the other from now on, so that counts grow."""
        self.shop.cluster.apply(probe(self.shop.namespace))
        servers = self.shop.add_servers()
        first, second = self.shop.cluster.nodes
        for node, other in ((first, second), (second, first)):
            self.shop.add_client(f"asking-{node.number}", node.name, [servers[other.name]])

    def series(self, selector: str = "") -> str:
        return (
            f'latencyprobe_stage_seconds{{namespace="{self.shop.namespace}",probe="{PROBE}"'
            f"{selector}}}"
        )

    def reported(self) -> Figures:
        """The buckets of all pods of each node, by node and stage, as the agents report them."""
        release, operator = self.release, self.release.secret("operator")
        lease = release.cluster.get("lease", LEASE, f"--namespace={NAMESPACE}")
        term = lease["spec"]["leaseTransitions"] + 1
        where = f"--namespace={self.shop.namespace}"
        uid = release.cluster.get("latencyprobe", PROBE, where)["metadata"]["uid"]
        return {
            (node, stage.name): dict(
                zip(stage.histogram.positions, stage.histogram.counts, strict=True)
            )
            for node, pod in release.agents().items()
            for stage in newest_report(pod["status"]["podIP"], operator, term, uid).summary.stages
            if stage.histogram.counts
        }

    def histograms(self) -> Histograms:
        """The same, as Prometheus has them."""
        return self.prometheus.histograms(self.series())

    def value(self, query: str) -> float:
        """A figure that rests. After a scrape that took too long, there is none until the next."""
        found: list[float] = []

        def unmet() -> str | None:
            value = self.prometheus.value(query)
            if value is None:
                return f"{query} has none: {json.dumps(self.prometheus.targets())}"
            found.append(value)
            return None

        wait_until("a figure", unmet, seconds=60)
        return found[0]


def figures(histograms: Histograms) -> Figures:
    """The buckets of the only pod of each node."""
    return {
        (labels["node"], labels["stage"]): positions(sample)
        for labels, sample in histograms
        if sample.count
    }


def positions(sample: NativeSample) -> Buckets:
    """The counts by position: a native bucket is one of ours under another number."""
    return {
        round(8 * math.log2(upper)) - FIRST_BUCKET + 1: round(count)
        for upper, count in sample.buckets.items()
    }


def probe(namespace: str, name: str = PROBE, app: str = "checkout") -> dict[str, Any]:
    return {
        "apiVersion": "latencyprobe.io/v1alpha1",
        "kind": "LatencyProbe",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": app}},
            "interval": "1s",
            # Nothing leaves it during the test, so that it has what the metrics sum up.
            "window": "1h",
            "overhead": {"maxCPUPercent": 0},
            "metrics": {"perPod": True},
            "objectives": [
                {"name": "reads", "stage": "rx.total", "percentile": "p99", "max": "1s"}
            ],
        },
    }


@pytest.fixture(scope="module")
def scraped(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """The agents want a certificate or a token; one is asked with each, as the docs say.

    They show slow packets, too.
    """
    release, cluster = shop.release, shop.cluster
    folder = tmp_path_factory.mktemp("scraped")
    credentials = folder / "credentials"
    credentials.mkdir()
    make_credentials(credentials)
    for name, key, path in (
        ("metrics-clients", "ca.crt", credentials / "clients.crt"),
        ("metrics-token", "token", credentials / "token"),
    ):
        cluster.kubectl(
            *("create", "secret", "generic", name, f"--namespace={AGENT_NAMESPACE}"),
            f"--from-file={key}={path}",
        )
    release.upgrade(
        *(
            "agent.metrics.clientCASecret=metrics-clients",
            "agent.metrics.tokenSecret=metrics-token",
            f"agent.metrics.exemplars={LIMIT_MS}ms",
        ),
        "agent.updateStrategy.rollingUpdate.maxUnavailable=100%",
    )
    (credentials / "agents.crt").write_bytes(release.secret("operator")["ca.crt"])
    namespace = f"metered-{uuid4().hex[:8]}"
    cluster.create_namespace(namespace)
    agents = {node: pod["status"]["podIP"] for node, pod in release.agents().items()}
    jobs, names = scrape_jobs(release, agents, credentials)
    with running_prometheus(folder, jobs) as prometheus:
        yield Scraped(Shop(release, namespace), prometheus, names)
    cluster.kubectl("delete", "latencyprobe", "--all", f"--namespace={namespace}", "--timeout=60s")
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def make_credentials(folder: Path) -> None:
    """A certificate and a token, and the authority that the agents are to believe."""
    clients = Authority("clients")
    own = clients.issue("prometheus", server=False, client=True, days=1)
    (folder / "clients.crt").write_bytes(clients.credential.certificate_pem)
    (folder / "client.crt").write_bytes(own.certificate_pem)
    (folder / "client.key").write_bytes(own.key_pem)
    (folder / "token").write_text(uuid4().hex)


def scrape_jobs(
    release: Release, agents: dict[str, str], folder: Path
) -> tuple[list[dict[str, object]], dict[str, str]]:
    """The jobs: one agent by certificate, one by token, both without either, and the operators."""
    trusted = {"ca_file": f"{folder}/agents.crt", "server_name": AGENT_NAME}
    own = {"cert_file": f"{folder}/client.crt", "key_file": f"{folder}/client.key"}
    token = {"credentials_file": f"{folder}/token"}
    first, second = (f"{address}:{AGENT_PORT}" for address in agents.values())
    operators = (pod["status"]["podIP"] for pod in release.operators().values())
    jobs = [
        scrape_job("certificate", first, scheme="https", tls_config={**trusted, **own}),
        scrape_job("token", second, scheme="https", tls_config=trusted, authorization=token),
        scrape_job("stranger", first, second, scheme="https", tls_config=trusted),
        scrape_job("operator", *(f"{address}:{OPERATOR_PORT}" for address in operators)),
    ]
    for job, node, address in zip(jobs, agents, (first, second), strict=False):
        # The chart's PodMonitor adds the label, too.
        job["static_configs"] = [{"targets": [address], "labels": {"node": node}}]
    return jobs, dict(zip(agents, ("certificate", "token"), strict=True))


def test_prometheus_has_what_agents_and_operator_report(
    scraped: Scraped, prove: Callable[[str], None]
) -> None:
    status = scraped.exchange()
    histograms: Histograms = []
    compared: list[tuple[Figures, Figures]] = []

    def unmet() -> str | None:
        """What ends after the last reply is in the next reports."""
        reported = scraped.reported()
        histograms[:] = scraped.histograms()
        found = figures(histograms)
        compared.append((reported, found))
        if found and found == reported:
            return None
        differing = [k for k in reported.keys() | found.keys() if reported.get(k) != found.get(k)]
        return f"{sorted(differing)} differ: {json.dumps(scraped.prometheus.targets())}"

    wait_until("equal buckets of all stages of both nodes", unmet, seconds=120, interval_s=2)
    reported, found = compared[-1]
    for node, stage in sorted(reported):
        title = f"{stage} on {node}"
        for line in bucket_table(title, reported[node, stage], found[node, stage]):
            prove(line)
    jobs = {labels["node"]: labels["job"] for labels, _ in histograms}
    assert jobs == scraped.jobs
    pods = {labels["pod"]: labels["node"] for labels, _ in histograms}
    assert pods == {pod["name"]: pod["node"] for pod in status["pods"]}
    totals = [sample for labels, sample in histograms if labels["stage"] == "rx.total"]
    assert [sample.count for sample in totals] == [REQUESTS, REQUESTS]


def test_quantiles_are_within_a_bucket_of_the_status(scraped: Scraped) -> None:
    compared: list[str] = []

    def unmet() -> str | None:
        """A status is written some time after the reports that it sums up."""
        compared.clear()
        for pod in scraped.shop.status(PROBE)["pods"]:
            for stage in (each for each in pod["stages"] if each["count"]):
                series = scraped.series(f',pod="{pod["name"]}",stage="{stage["name"]}"')
                for name, quantile in QUANTILES.items():
                    theirs = scraped.value(f"histogram_quantile({quantile}, {series})")
                    if buckets_apart(theirs, stage[name] / 1e9) > 1:
                        return f"{pod['name']}: {name} of {stage}, in Prometheus {theirs} s"
                    compared.append(name)
        return None

    wait_until("quantiles within a bucket", unmet, seconds=120, interval_s=2)
    assert len(compared) >= 2 * len(QUANTILES) * len(("rx.total", "tx.total", "rx.socket"))


def test_the_operators_figures_are_those_of_the_status_and_of_all_nodes(scraped: Scraped) -> None:
    stage = 'stage="rx.total"'
    labels = f'namespace="{scraped.shop.namespace}",probe="{PROBE}",{stage}'
    gauges = {
        f"p{percent}Ns": "latencyprobe_operator_probe_stage_seconds"
        f'{{{labels},percentile="p{percent}"}}'
        for percent in (50, 99)
    }
    together = f"sum({scraped.series(f',{stage}')})"
    shown: dict[str, float] = {}

    def unmet() -> str | None:
        """The status follows small changes later than the metrics do."""
        shown.update({name: scraped.value(gauge) for name, gauge in gauges.items()})
        summary = scraped.shop.status(PROBE)["summary"]
        equal = all(each == pytest.approx(summary[name] / 1e9) for name, each in shown.items())
        return None if equal else f"{shown} s, in the status {summary}"

    wait_until("the status to have the figures of the metrics", unmet, seconds=300, interval_s=2)
    for name, each in shown.items():
        theirs = scraped.value(f"histogram_quantile({QUANTILES[name]}, {together})")
        assert buckets_apart(theirs, each) <= 1


def buckets_apart(one_s: float, other_s: float) -> int:
    return abs(position_of(round(one_s * 1e9)) - position_of(round(other_s * 1e9)))


def test_slow_packets_are_beside_the_series_of_their_pod_though_no_client_traces(
    scraped: Scraped,
) -> None:
    shop, namespace = scraped.shop, scraped.shop.namespace
    first, second = shop.cluster.nodes
    delay = ["--read-delay-ms", str(READ_DELAY_MS)]
    shop.cluster.apply(
        server_pod(SLOW, namespace=namespace, node=first.name, app=SLOW, options=delay)
    )
    (server,) = shop.cluster.wait_for_pods(namespace, f"app={SLOW}", count=1)
    shop.cluster.apply(probe(namespace, SLOW, SLOW))
    shop.wait("the slow pod", lambda s: s.get("targets") == SLOW_TARGETS, probe=SLOW)
    shop.add_client("asking", second.name, [server["status"]["podIP"]], rate=1)
    (client,) = shop.cluster.wait_for_pods(namespace, "app=asking", count=1)
    series = (
        f'latencyprobe_stage_seconds{{namespace="{namespace}",probe="{SLOW}",stage="rx.total"}}'
    )
    found: list[tuple[Labels, list[Exemplar]]] = []

    def unmet() -> str | None:
        found[:] = scraped.prometheus.exemplars(series)
        if any(exemplars for _, exemplars in found):
            return None
        return f"there are none: {json.dumps(scraped.prometheus.targets())}"

    wait_until("an exemplar of the slow pod", unmet, seconds=120, interval_s=2)
    for labels, exemplars in found:
        assert (labels["pod"], labels["node"]) == (SLOW, first.name)
        for each in exemplars:
            assert each.value * 1000 >= LIMIT_MS
            assert each.labels["remote"].startswith(f"{client['status']['podIP']}:")
            assert each.labels["local"] == f"{server['status']['podIP']}:{SERVER_PORT}"
            assert "rx_socket" in each.labels


def test_a_scrape_without_certificate_and_token_is_refused(scraped: Scraped) -> None:
    refused = ["server returned HTTP status 403 Forbidden"] * 2

    def unmet() -> str | None:
        targets = scraped.prometheus.targets()
        said = [each["lastError"] for each in targets if each["labels"]["job"] == "stranger"]
        return None if said == refused else f"the last scrapes said {said}"

    wait_until("both agents' refusals", unmet, seconds=60)
    assert scraped.prometheus.value('max(max_over_time(up{job="stranger"}[1h]))') == 0


def test_the_boards_show_figures_of_real_agents_and_operators(
    scraped: Scraped, prove: Callable[[str], None]
) -> None:
    """Variables have the values that Prometheus names. A query that it refuses is an error."""
    assert MAY_BE_EMPTY.keys() < {str(query) for query in queries()}
    scraped.keep_asking()
    namespace = scraped.shop.namespace
    filled = FilledBoards(scraped.prometheus, {"namespace": namespace, "probe": PROBE})

    def unmet() -> str | None:
        empty = [str(query) for query in filled.empty() if not may_be_empty(query)]
        return f"without figures: {empty}" if empty else None

    wait_until("figures in the panels", unmet, seconds=300, interval_s=2)
    for line in filled.lines():
        prove(line)
    values = filled.values("probe")
    nodes = {each.name for each in scraped.release.cluster.nodes}
    assert (values["namespace"], values["probe"]) == (namespace, PROBE)
    assert set(values["node"]) == nodes
    assert set(values["pod"]) == {"checkout-1", "checkout-2"}
    assert set(filled.values("agents")["node"]) == nodes


def may_be_empty(query: PanelQuery) -> bool:
    """A panel of the operator's own figures never may."""
    return str(query) in MAY_BE_EMPTY and OF_OPERATOR not in query.expr
