"""Processes and their descendants, with real forks."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.desired import NetnsSelector, PidSelector
from latencyprobe_agent.targets.processes import Processes
from latencyprobe_agent.targets.resolver import Resolver
from tests.live.targets import follow, netns_of, python, sleeper, until

# Forks once its input is closed: a child that forks a grandchild, and both stay.
FAMILY = """
import os, sys, time
sys.stdin.read()
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(300)
    time.sleep(300)
time.sleep(300)
"""


@pytest.fixture
def resolver() -> Resolver:
    return Resolver()


def test_descendants_are_followed_and_orphans_stay(resolver: Resolver) -> None:
    process = subprocess.Popen(python(FAMILY), stdin=subprocess.PIPE, process_group=0)
    try:
        target = PidSelector(process.pid)
        resolver.track([target])
        first = resolver.facts_of(target)
        assert (first.state, first.pids) == (TargetState.ATTACHED, (process.pid,))
        assert first.tgids == {process.pid}
        assert first.netns == {netns_of(process.pid)}
        assert process.stdin is not None
        process.stdin.close()
        family = follow(resolver, target, lambda f: len(f.pids) == 3, "three processes").pids
        process.kill()
        process.wait()
        orphans = follow(resolver, target, lambda f: len(f.pids) == 2, "two orphans").pids
        assert set(orphans) == set(family) - {process.pid}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    facts = follow(resolver, target, lambda f: f.state is TargetState.GONE, "gone")
    assert facts.message == f"process {process.pid} and its descendants have exited"


def test_a_process_that_moves_to_another_namespace_is_followed(resolver: Resolver) -> None:
    with sleeper("sh", "-c", "read line; exec unshare --net sleep 300") as process:
        target = PidSelector(process.pid)
        resolver.track([target])
        home = netns_of(os.getpid())
        follow(resolver, target, lambda f: f.netns and f.netns != {home}, "another namespace")


def test_a_pid_that_is_gone_is_refused(resolver: Resolver) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    target = PidSelector(process.pid)
    resolver.track([target])
    facts = resolver.facts_of(target)
    assert facts.state is TargetState.FAILED
    assert f"no such process: {process.pid}" in facts.message


def test_a_zombie_is_as_gone_as_a_process_that_was_waited_for(resolver: Resolver) -> None:
    with subprocess.Popen(["true"]) as process:
        stat = Processes().stat
        until(lambda: (s := stat(process.pid)) and s.has_exited, "a zombie")
        target = PidSelector(process.pid)
        resolver.track([target])
        assert resolver.facts_of(target).state is TargetState.FAILED


def test_a_thread_is_refused_and_its_process_named(resolver: Resolver) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        target = PidSelector(thread.native_id or 0)
        resolver.track([target])
        facts = resolver.facts_of(target)
        assert facts.state is TargetState.FAILED
        assert f"is a thread of process {os.getpid()} (" in facts.message
    finally:
        done.set()
        thread.join()


def test_a_kernel_thread_is_refused(resolver: Resolver) -> None:
    target = PidSelector(2)  # kthreadd
    resolver.track([target])
    facts = resolver.facts_of(target)
    assert facts.state is TargetState.FAILED
    assert "2 (kthreadd) is a kernel thread" in facts.message


@pytest.fixture
def netns_name() -> Iterator[str]:
    name = f"lp-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_a_named_namespace_is_a_target_until_it_is_deleted(
    resolver: Resolver, netns_name: str
) -> None:
    path = Path("/var/run/netns") / netns_name
    target = NetnsSelector(str(path))
    resolver.track([target])
    facts = resolver.facts_of(target)
    assert facts.state is TargetState.ATTACHED
    assert facts.netns_wide == facts.netns == {path.stat().st_ino}
    subprocess.run(["ip", "netns", "del", netns_name], check=True)
    follow(resolver, target, lambda f: f.state is TargetState.GONE, "gone")
