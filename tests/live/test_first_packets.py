"""Pods are measured from their first packet: the agent knows them before they have a container."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.agent import Agent, NodeDescription
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.windows.probe_window import WindowReport
from tests.live.jobs import answer_job, sandbox, start_job
from tests.live.measuring import assert_all_left
from tests.live.pods import Namespace, Pod, namespace, run
from tests.live.sockets import connect, listen, sent_again
from tests.live.targets import made_cgroup
from tests.patience import patient
from tests.unit.agent.scripted import ScriptedEvidence
from tests.unit.agent.states import seconds, state

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
HOST_NETNS = Path("/proc/self/ns/net").stat().st_ino
NODE = NodeDescription("here", "", "", "btf", "v2", host_netns=HOST_NETNS)
UID = "7d1f6c0a-93b2-4e58-a1c4-2f0e5b8d9a37"
REQUESTS = 50


@pytest.fixture
async def agent(start_engine: Start) -> AsyncIterator[Agent]:
    """An agent that attends by itself, as the process does."""
    made = Agent(
        start_engine(host_netns=HOST_NETNS),
        Resolver(host_netns=HOST_NETNS),
        NODE,
        AgentMetrics(),
        ScriptedEvidence(),
    )
    keeping = asyncio.create_task(made.keep())
    yield made
    await made.close()
    keeping.cancel()
    await asyncio.wait({keeping})


def on_target(*, cgroup_path: bytes | None = None, netns_path: bytes | None = None) -> pb.Probe:
    """A probe on one target that is not a pod."""
    return pb.Probe(
        id="p",
        modules=["rx", "tx", "tcp"],
        interval=seconds(0.2),
        window=seconds(60),
        max_pods=5,
        targets=[pb.Target(id="t", cgroup_path=cgroup_path, netns_path=netns_path)],
    )


def one_pod(generation: int = 1) -> pb.DesiredState:
    """The pod, before any container of it is known."""
    probe = pb.Probe(
        id="p",
        modules=["rx", "tx", "tcp"],
        interval=seconds(0.2),
        window=seconds(60),
        max_pods=5,
        pods=[pb.Pod(uid=UID, name="job-x", containers=["main"])],
    )
    return state(probe, generation=generation)


async def until_state(agent: Agent, wanted: TargetState) -> None:
    deadline = time.monotonic() + patient(20)
    while (seen := standing(agent)) is not wanted:
        assert time.monotonic() < deadline, f"it is {seen}"
        await asyncio.sleep(0.005)


def standing(agent: Agent, target: str = UID) -> TargetState:
    (desired,) = agent._reconciler.desired.probes
    return agent.standings(desired)[target].state


async def until_measured_in(agent: Agent, inode: int) -> None:
    """Wait until the kernel measures in this network namespace."""
    engine = agent._engine
    assert isinstance(engine, KernelEngine)
    deadline = time.monotonic() + patient(20)
    while all(inode not in spec.netns for spec in engine._slots.values()):
        assert time.monotonic() < deadline, f"it measures {engine._slots}"
        await asyncio.sleep(0.005)


async def until_reported(
    agent: Agent, condition: Callable[[WindowReport], object], what: str
) -> WindowReport:
    deadline = time.monotonic() + patient(20)
    while True:
        report = agent.take_window_report("p")
        if report is not None and condition(report):
            return report
        assert time.monotonic() < deadline, f"{what}: last seen {report}"
        await asyncio.sleep(0.05)


def samples(report: WindowReport, stage: str) -> tuple[int, int]:
    """(measured, known to be missing)"""
    measured = report.summary.merged.stage(stage)
    return measured.histogram.count, measured.lost + measured.unmatched


def assert_sent_once(report: WindowReport, number: int, again: int) -> None:
    """`again`: segments that TCP sent once more, as the kernel counts them."""
    assert_all_left(report.summary.merged, "tx.total", number, again)


def has_samples(stage: str, number: int, report: WindowReport) -> bool:
    return samples(report, stage)[0] >= number


async def run_job(pod: Pod, directory: Path, server: Pod, requests: int = REQUESTS) -> None:
    """A container, from its cgroup to its end."""
    with listen(server.namespace, server.address) as listener:
        job = await asyncio.to_thread(start_job, pod.namespace, directory, server.address, requests)
        await asyncio.to_thread(answer_job, listener, requests)
        assert await asyncio.to_thread(job.wait, patient(60)) == 0


@pytest.mark.every_kernel
async def test_a_pod_that_was_named_before_its_cgroup_has_its_first_packet(
    agent: Agent, pair: Pair
) -> None:
    client, server = pair
    before = sent_again(client.namespace)
    await agent.apply(parse_desired(one_pod()))
    assert standing(agent) is TargetState.PENDING
    with made_cgroup(f"kubepods/besteffort/pod{UID}") as directory, sandbox(client, directory):
        await until_state(agent, TargetState.ATTACHED)
        await run_job(client, directory / "main", server)
        report = await until_reported(
            agent, lambda each: samples(each, "tcp.connect")[0], "the connect"
        )
        assert samples(report, "tcp.connect") == (1, 0)
        report = await until_reported(
            agent, lambda each: samples(each, "rx.total")[0] >= REQUESTS, "all replies"
        )
        assert samples(report, "rx.total") == (REQUESTS, 0)
        assert_sent_once(report, REQUESTS, sent_again(client.namespace) - before)
        (pod,) = report.pods
        assert (pod.name, pod.containers, pod.ended) == ("job-x", ("main",), False)
    await until_state(agent, TargetState.GONE)
    report = await until_reported(agent, lambda each: each.pods[0].ended, "its end")
    assert samples(report, "rx.total") == (REQUESTS, 0)


async def test_a_container_that_starts_again_has_its_first_packet(agent: Agent, pair: Pair) -> None:
    client, server = pair
    with made_cgroup(f"kubepods/pod{UID}") as directory, sandbox(client, directory):
        await agent.apply(parse_desired(one_pod()))
        await until_state(agent, TargetState.ATTACHED)
        for number in range(3):
            await run_job(client, directory / f"main-{number}", server)
        report = await until_reported(
            agent, lambda each: samples(each, "rx.total")[0] >= 3 * REQUESTS, "all replies"
        )
        assert samples(report, "tcp.connect") == (3, 0)
        assert samples(report, "rx.total") == (3 * REQUESTS, 0)


async def test_an_agent_that_starts_under_a_running_pod_measures_the_rest(
    agent: Agent, pair: Pair
) -> None:
    client, server = pair
    with (
        made_cgroup(f"kubepods/pod{UID}") as directory,
        sandbox(client, directory),
        listen(server.namespace, server.address) as listener,
    ):
        (directory / "main").mkdir()
        job = start_job(client.namespace, directory / "main", server.address, 2)
        answering, _ = listener.accept()
        with answering:
            answering.recv(64)
            await agent.apply(parse_desired(one_pod()))
            await until_state(agent, TargetState.ATTACHED)
            answering.sendall(b"r" * 128)
            answering.recv(64)
            answering.sendall(b"r" * 128)
            answering.recv(1)
        assert await asyncio.to_thread(job.wait, patient(60)) == 0
        report = await until_reported(
            agent, lambda each: samples(each, "rx.total")[0] >= 2, "both replies"
        )
        assert samples(report, "rx.total") == (2, 0)
        assert report.summary.merged.stage("rx.socket").lost == 0
        assert "tcp.connect" not in report.summary.merged.stages


async def test_another_sandbox_of_a_pod_has_its_first_packet(
    agent: Agent, pair: Pair, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    client, server = pair
    _, other, answering = bridged
    with made_cgroup(f"kubepods/pod{UID}") as directory:
        await agent.apply(parse_desired(one_pod()))
        with sandbox(client, directory):
            await until_state(agent, TargetState.ATTACHED)
            await run_job(client, directory / "main-0", server)
        (directory / "pause").rmdir()
        with sandbox(other, directory):
            await until_measured_in(agent, other.namespace.inode)
            await run_job(other, directory / "main-1", answering)
        report = await until_reported(
            agent, lambda each: samples(each, "rx.total")[0] >= 2 * REQUESTS, "all replies"
        )
        assert samples(report, "tcp.connect") == (2, 0)
        assert samples(report, "rx.total") == (2 * REQUESTS, 0)


# A shell connects, asks and reads within a millisecond after it joined the cgroup.
QUICK = """
echo $$ > "$0/cgroup.procs"
exec 3<>"/dev/tcp/$1/7000"
printf q >&3
read -r -n 1 reply <&3
"""


def quick_client(namespace: Namespace, cgroup: Path, address: str) -> subprocess.Popen[bytes]:
    enter = ["nsenter", f"--net={namespace.path}"]
    return subprocess.Popen([*enter, "bash", "-c", QUICK, str(cgroup), address])


@pytest.mark.every_kernel
async def test_a_process_in_an_empty_cgroup_is_measured_from_its_first_packet(
    agent: Agent, pair: Pair
) -> None:
    client, server = pair
    before = sent_again(client.namespace)
    with made_cgroup() as cgroup, listen(server.namespace, server.address) as listener:
        await agent.apply(parse_desired(state(on_target(cgroup_path=bytes(cgroup)))))
        assert standing(agent, "t") is TargetState.PENDING
        for number in range(1, 4):
            asking = quick_client(client.namespace, cgroup, server.address)
            answering, _ = await asyncio.to_thread(listener.accept)
            with answering:
                answering.recv(1)
                answering.sendall(b"r")
                assert await asyncio.to_thread(asking.wait, patient(60)) == 0
            is_counted = partial(has_samples, "rx.total", number)
            report = await until_reported(agent, is_counted, "the answer")
            assert samples(report, "tcp.connect") == (number, 0)
            assert samples(report, "rx.total") == (number, 0)
            assert_sent_once(report, number, sent_again(client.namespace) - before)


async def test_a_namespace_that_is_made_again_at_its_path_is_measured(agent: Agent) -> None:
    with namespace("again") as first:
        path = bytes(first.path)
        await agent.apply(parse_desired(state(on_target(netns_path=path))))
        connect_to_itself(first)
        await until_reported(agent, lambda each: samples(each, "tcp.connect")[0] == 1, "one")
        run("ip", "netns", "delete", first.name)
        with namespace("between"):  # so that its number is another one
            run("ip", "netns", "add", first.name)
            first.ip("link", "set", "lo", "up")
            await until_measured_in(agent, first.inode)
            connect_to_itself(first)
            await until_reported(agent, lambda each: samples(each, "tcp.connect")[0] == 2, "two")


def connect_to_itself(there: Namespace) -> None:
    with listen(there, "127.0.0.1") as listener, connect(there, "127.0.0.1"):
        listener.accept()[0].close()
