"""The leading operator is killed, frozen, or cut off: the other one leads, and nothing is detached.

Each test prints what happened when, in seconds since the leader was gone. The times between two
leaders are the Lease's own: both operators run on this machine, by one clock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from devcluster.client import KubectlError
from devcluster.waiting import wait_until
from tests.cluster.release import LEASE, Release, pod_of
from tests.cluster.shop import LIVE, Shop
from tests.cluster.watching import Line, Watched, watching
from tools.helm.chart import NAMESPACE

Json = dict[str, Any]

# Ten times what it takes.
DEADLINE_S = 200
# A standby reads the Lease every 2 s, and takes it once it has not changed for 15 s.
LONGEST_FAILOVER_S = 20
# One that was released is taken at the next reading.
LONGEST_HANDOVER_S = 10
TABLE = "latencyprobe_test"


class Failover:
    """One change of leader, as the API server's watches saw it."""

    def __init__(self, shop: Shop, statuses: Watched, leases: Watched) -> None:
        self.shop, self.release = shop, shop.release
        self.statuses, self.leases = statuses, leases
        self.leader = self.release.leader()
        self.holder = self.release.holder()
        self.restarts = self.release.restarts()[self.leader["metadata"]["name"]]
        self.attached = self.release.program_ids()
        assert self.attached
        self.gone_at = 0.0
        self.notes: list[tuple[float, str]] = []

    def note(self, text: str, at: float | None = None) -> None:
        """Add a line to the transcript."""
        self.notes.append((time.monotonic() if at is None else at, text))

    def lose_leader(
        self, how: str, lose: Callable[[], None], *, longest_s: float = LONGEST_FAILOVER_S
    ) -> None:
        """Have the leader gone while it writes statuses; wait until the other one has its first.

        `longest_s`: from the old leader's last renewal until the other one has the Lease.
        """
        began = time.monotonic()
        self._wait("a status of the leader", lambda: self.statuses.since(began))
        lose()
        self.gone_at = time.monotonic()
        self.note(f"{self.holder}: {how}", self.gone_at)
        taken = self._wait("another leader", self._taken)
        last = self.statuses.before(taken.at)[-1]
        self.note(f"last status before the other leads, of reports until {last.fields[1]}", last.at)
        self.note(f"{taken.fields[0]} leads, term {int(taken.fields[1]) + 1}", taken.at)
        without_s = self._without_leader_s(taken)
        self.note(f"the Lease was taken {without_s:.1f} s after its last renewal", taken.at)
        assert 0 < without_s < longest_s
        first = self._wait("a status of the new leader", lambda: self._reported_after(taken))
        self.note(f"first status of the new leader, of reports until {first.fields[1]}", first.at)
        assert self.release.program_ids() == self.attached
        self.note(f"attached: the {len(self.attached)} programs of before")

    def old_leader_is_standby(self) -> None:
        """Wait until the old leader has ended, and its pod runs another process."""
        name = self.leader["metadata"]["name"]

        def unmet() -> str | None:
            restarts = self.release.restarts()[name] - self.restarts
            waits = restarts and "standby: " in self._log(name)
            return None if waits else f"{restarts} restarts; it logged {self._log(name)}"

        wait_until("the old leader's pod to be a standby", unmet, seconds=DEADLINE_S)
        self.note("the old leader's pod is a standby")
        assert self.release.operators()[name]["metadata"]["uid"] == self.leader["metadata"]["uid"]

    def lost_the_lease(self) -> None:
        """Check that the old process said why it ended."""
        previous = self._log(self.leader["metadata"]["name"], "--previous")
        assert f"lost the Lease {NAMESPACE}/{LEASE}" in previous

    def close(self) -> None:
        """Check the whole course of events, and print it."""
        self.shop.wait_until_both_nodes_report()
        assert self.release.program_ids() == self.attached
        ready = {line.fields[2] for line in self.statuses.since(self.gone_at)}
        self.note(f"both nodes report; Ready was {', '.join(sorted(ready))} all the time")
        assert ready == {"Measuring"}
        reported = [line.fields[1] for line in self.statuses.lines]
        assert reported == sorted(reported), "an older status was written over a newer one"
        terms = [int(line.fields[1]) for line in self.leases.lines]
        assert terms == sorted(terms)
        print()
        for at, text in sorted(self.notes):
            print(f"{at - self.gone_at:+8.1f} s  {text}")

    def _taken(self) -> Line | None:
        taken = (
            line
            for line in self.leases.since(self.gone_at)
            if line.fields[0] not in ("", self.holder)
        )
        return next(taken, None)

    def _without_leader_s(self, taken: Line) -> float:
        """The time from the old leader's last renewal until the other one had the Lease."""
        renewals = [
            line.fields[3] for line in self.leases.before(taken.at) if line.fields[0] == self.holder
        ]
        acquired = datetime.fromisoformat(taken.fields[2])
        return (acquired - datetime.fromisoformat(renewals[-1])).total_seconds()

    def _reported_after(self, taken: Line) -> Line | None:
        last = self.statuses.before(taken.at)[-1]
        later = (line for line in self.statuses.since(taken.at) if line.fields[1] > last.fields[1])
        return next(later, None)

    def _wait(self, what: str, look: Callable[[], Any]) -> Any:
        found: list[Any] = []

        def unmet() -> str | None:
            found[:] = [look()]
            seen = (*self.statuses.lines[-3:], *self.leases.lines[-3:])
            return None if found[0] else f"{seen}\n{self.release.logs()}"

        wait_until(what, unmet, seconds=DEADLINE_S, interval_s=0.1)
        return found[0]

    def _log(self, pod: str, *options: str) -> str:
        try:
            return self.shop.cluster.kubectl("logs", pod, f"--namespace={NAMESPACE}", *options)
        except KubectlError as error:
            return str(error)


@pytest.fixture
def failover(shop: Shop) -> Iterator[Failover]:
    """Both nodes report, and both watches run."""
    shop.wait_until_both_nodes_report()
    cluster = shop.cluster
    ready = '.status.conditions[?(@.type=="Ready")].reason'
    probe = (LIVE, shop.namespace, ".metadata.resourceVersion", ".status.lastReportTime", ready)
    fields = ("holderIdentity", "leaseTransitions", "acquireTime", "renewTime")
    lease = (LEASE, NAMESPACE, *(f".spec.{field}" for field in fields))
    with (
        watching(cluster, "latencyprobe", *probe) as statuses,
        watching(cluster, "lease", *lease) as leases,
    ):
        yield Failover(shop, statuses, leases)


def _send(release: Release, pod: Json, sent: signal.Signals) -> None:
    for pid in release.pids_of(pod):
        os.kill(pid, sent)


def test_another_operator_leads_after_the_leader_is_killed(failover: Failover) -> None:
    failover.lose_leader("killed", lambda: _send(failover.release, failover.leader, signal.SIGKILL))

    failover.old_leader_is_standby()
    failover.close()


def test_a_leader_that_ends_hands_over_at_once(failover: Failover) -> None:
    failover.lose_leader(
        "SIGTERM",
        lambda: _send(failover.release, failover.leader, signal.SIGTERM),
        longest_s=LONGEST_HANDOVER_S,
    )

    failover.old_leader_is_standby()
    failover.close()


@pytest.mark.thorough
def test_a_leader_that_was_frozen_writes_nothing_when_it_goes_on(failover: Failover) -> None:
    release, leader = failover.release, failover.leader
    try:
        failover.lose_leader("frozen", lambda: _send(release, leader, signal.SIGSTOP))
    finally:
        _send(release, leader, signal.SIGCONT)
    failover.note("the old leader is thawed")

    failover.old_leader_is_standby()
    failover.lost_the_lease()
    assert pod_of(release.holder()) != leader["metadata"]["name"]
    failover.close()


@contextmanager
def _cut_off(failover: Failover) -> Iterator[Callable[[], None]]:
    """Give what cuts the leader's pod off from the API server, until the end of the block."""
    (pid, *_) = failover.release.pids_of(failover.leader)
    enter = ("nsenter", f"--target={pid}", "--net", "nft")
    address = failover.shop.cluster.layout.api_service_ip

    def cut() -> None:
        for command in (
            f"add table ip {TABLE}",
            f"add chain ip {TABLE} output {{ type filter hook output priority 0; }}",
            f"add rule ip {TABLE} output ip daddr {address} drop",
        ):
            subprocess.run([*enter, command], check=True)

    try:
        yield cut
    finally:
        subprocess.run([*enter, f"delete table ip {TABLE}"], check=True)


@pytest.mark.thorough
def test_a_leader_without_the_api_server_loses_the_agents_to_the_other(
    failover: Failover,
) -> None:
    with _cut_off(failover) as cut:
        failover.lose_leader("cut off from the API server", cut)
    failover.note("the old leader reaches the API server again")

    failover.old_leader_is_standby()
    failover.lost_the_lease()
    failover.close()
