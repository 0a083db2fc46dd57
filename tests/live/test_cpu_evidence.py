"""What a target's cgroups had to wait for a CPU, against the kernel's own files."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from latencyprobe_agent.desired import (
    CgroupSelector,
    ContainerSelector,
    PidSelector,
    PodSelector,
    Selector,
)
from latencyprobe_agent.evidence.gatherer import Gatherer
from latencyprobe_agent.evidence.namespaces import Namespace as Place
from latencyprobe_agent.targets.facts import TargetFacts
from latencyprobe_agent.targets.resolver import Resolver
from tests.live.quotas import Account, quota
from tests.live.targets import follow, made_cgroup, until

UID = "0b7e3f0c-1d2e-4f5a-8b9c-0d1e2f3a4b5d"
CID = "cd" * 32
POD = f"kubepods/burstable/pod{UID}"
# Joins cgroups, waits to be let go, and keeps a CPU busy with two threads.
BURN = """
for file in "$@"; do echo $$ > "$file"; done
kill -STOP $$
while :; do :; done &
while :; do :; done
"""


@pytest.fixture
def gatherer() -> Iterator[Gatherer]:
    made = Gatherer(Place(os.stat("/proc/self/ns/net").st_ino, path="/proc/self/ns/net"))
    yield made
    made.close()


@dataclass
class Burner:
    """Processes that want more than the quota, and stand still until they are let go."""

    pid: int

    def let_go(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def hold(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)
        self.wait_until_held()

    def wait_until_held(self) -> None:
        until(lambda: self._state() == "T", "a burner that stands still")

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def burner(*cgroups: Path) -> Iterator[Burner]:
    files = [str(directory / "cgroup.procs") for directory in dict.fromkeys(cgroups)]
    process = subprocess.Popen(
        ["taskset", "-c", "0", "sh", "-c", BURN, "sh", *files], process_group=0
    )
    try:
        made = Burner(process.pid)
        made.wait_until_held()
        yield made
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def pressure_us(directory: Path) -> int:
    some, _, _ = (directory / "cpu.pressure").read_text().partition("\n")
    return int(some.rpartition("total=")[2])


@dataclass
class Growth:
    """What grew of a target, by our reader and by the files that the test reads itself.

    The kernel may count periods and pressure while both read. So the test reads before and after
    our reader, until the two are equal.
    """

    gatherer: Gatherer
    selector: Selector
    facts: TargetFacts
    directory: Path
    cgroup: Path

    def __post_init__(self) -> None:
        self.seen: dict[str, int] = {}
        until(self._begins_anew, "a first reading while the accounts stand still")

    def _begins_anew(self) -> bool:
        """Whether our reader began while nothing grew: its first reading stores the accounts."""
        self.gatherer.keep(())
        self.at_first = self.witness()
        assert self.read() == {}
        return self.at_first == self.witness()

    def witness(self) -> tuple[Account, int]:
        return Account.of(self.directory), pressure_us(self.cgroup)

    def read(self) -> dict[str, int]:
        read = self.gatherer.of_cgroups({self.selector: self.facts})
        for name, count in read.get(self.selector, {}).items():
            self.seen[name] = self.seen.get(name, 0) + count
        return self.seen

    def agrees(self) -> bool:
        """Whether nothing grew while both read, so that they have to agree."""
        self.at_last = self.witness()
        self.read()
        return self.at_last == self.witness()

    def expected(self) -> dict[str, int]:
        """The growth until both agreed last."""
        (now, pressure), (first, first_pressure) = self.at_last, self.at_first
        grown = now - first
        return {
            "cpuThrottledNs": grown.throttled_ns,
            "cpuThrottledPeriods": grown.throttled,
            "cpuPeriods": grown.periods,
            "cpuPressureNs": (pressure - first_pressure) * 1000,
        }


def selector_of(kind: str, cgroup: Path, pid: int) -> Selector:
    selectors: dict[str, Selector] = {
        "process": PidSelector(pid),
        "cgroup": CgroupSelector(str(cgroup)),
        "container": ContainerSelector(pod_uid=UID, container_id=CID),
        "pod": PodSelector(pod_uid=UID),
    }
    return selectors[kind]


def facts_of(selector: Selector, pid: int) -> TargetFacts:
    resolver = Resolver()
    resolver.track([selector])
    return follow(resolver, selector, lambda facts: pid in facts.pids, "the burner")


def burn(growth: Growth, burning: Burner) -> None:
    """Let the quota run out a few times, with a reading in between."""

    def periods() -> int:
        return growth.witness()[0].throttled - growth.at_first[0].throttled

    burning.let_go()
    until(lambda: periods() >= 3, "3 periods throttled")
    growth.read()
    until(lambda: periods() >= 6, "6 periods throttled")
    burning.hold()
    until(growth.agrees, "accounts that stand still")


@pytest.mark.parametrize("kind", ["process", "cgroup", "container", "pod"])
def test_throttling_and_pressure_of_a_target_are_the_kernels_own(
    gatherer: Gatherer, kind: str
) -> None:
    with (
        made_cgroup(f"{POD}/{CID}") as cgroup,
        quota(cgroup, 20) as limited,
        burner(cgroup, limited) as burning,
    ):
        selector = selector_of(kind, cgroup, burning.pid)
        facts = facts_of(selector, burning.pid)
        pressed = cgroup.parent if kind == "pod" else cgroup
        growth = Growth(gatherer, selector, facts, limited, pressed)
        burn(growth, burning)
        assert growth.seen == growth.expected()
        assert growth.seen["cpuThrottledPeriods"] >= 6


def test_a_containers_wait_for_its_pods_quota_is_its_own(gatherer: Gatherer) -> None:
    with made_cgroup(f"{POD}/{CID}") as cgroup, quota(cgroup.parent, 20) as limited:
        inner = limited / CID
        inner.mkdir(exist_ok=True)
        with burner(cgroup, inner) as burning:
            selector = selector_of("container", cgroup, burning.pid)
            facts = facts_of(selector, burning.pid)
            growth = Growth(gatherer, selector, facts, limited, cgroup)
            burn(growth, burning)
            assert growth.seen == growth.expected()
        until(lambda: not (inner / "cgroup.procs").read_text(), "the burner's end")
        if inner != cgroup:
            inner.rmdir()


def test_a_process_without_a_quota_has_no_account_of_one(gatherer: Gatherer) -> None:
    with made_cgroup(f"{POD}/{CID}") as cgroup, burner(cgroup) as burning:
        selector = selector_of("process", cgroup, burning.pid)
        facts = facts_of(selector, burning.pid)
        first = pressure_us(cgroup)
        assert gatherer.of_cgroups({selector: facts}) == {}
        burning.let_go()
        until(lambda: pressure_us(cgroup) > first, "pressure of two threads on one CPU")
        seen = gatherer.of_cgroups({selector: facts})
        assert seen[selector].keys() == {"cpuPressureNs"}


def test_pressure_of_the_node_is_the_kernels_own(gatherer: Gatherer) -> None:
    def total_us() -> int:
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0])

    assert "cpuPressureNs" not in gatherer.of_node()
    least_us = total_us()
    gatherer.of_node()
    most_us = total_us()
    with made_cgroup() as cgroup, burner(cgroup) as burning:
        burning.let_go()
        until(lambda: total_us() > most_us + 10_000, "pressure")
        after_us = total_us()
        seen_us = gatherer.of_node()["cpuPressureNs"] // 1000
    assert after_us - most_us <= seen_us <= total_us() - least_us
