"""An agent as on a node: a process of its own, with a Unix socket, and a client that applies."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from bench.outcome import CannotMeasureError
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub

if TYPE_CHECKING:
    from latencyprobe.protocol.v1.node_agent_pb2_grpc import (
        NodeAgentAsyncStub,  # in the stubs alone
    )

INTERVAL_S = 10
_WINDOW_S = 60
_MAX_PODS = 20
_READY_S = 30.0
_NO_POD = "00000000-0000-0000-0000-000000000000"


class RunningAgent:
    """A running agent. Made by `agent`."""

    def __init__(self, pid: int, stub: NodeAgentAsyncStub) -> None:
        self.pid = pid
        self._stub = stub
        self._generation = 0

    async def apply(self, pids: Sequence[int]) -> float:
        """Apply a state with these processes as targets, as `attach`."""
        return await self.attach([pb.Target(id=str(pid), pid=pid) for pid in pids])

    async def attach(self, targets: Sequence[pb.Target]) -> float:
        """Apply a state with these targets; return the seconds until all were attached.

        The agent answers once its programs measure them.
        """
        began = time.monotonic()
        await self._apply(targets, pb.TargetStatus.ATTACHED)
        return time.monotonic() - began

    async def wait_for_a_pod(self) -> None:
        """Apply a state whose only target does not exist yet."""
        absent = pb.Container(pod_uid=_NO_POD, container_id=f"containerd://{'0' * 64}")
        await self._apply([pb.Target(id="absent", container=absent)], pb.TargetStatus.PENDING)

    async def _apply(self, targets: Sequence[pb.Target], expected: pb.TargetStatus.State) -> None:
        self._generation += 1
        probe = pb.Probe(
            id="bench",
            name="bench",
            modules=[str(module) for module in DEFAULT_MODULES],
            interval=Duration(seconds=INTERVAL_S),
            window=Duration(seconds=_WINDOW_S),
            max_pods=_MAX_PODS,
            pods_in_full=pb.PodChoice(most=_MAX_PODS),
            targets=targets,
            node_figures=True,
        )
        state = pb.DesiredState(generation=self._generation, probes=[probe] if targets else [])
        result = await self._stub.Apply(state)
        states = {target.state for status in result.probes for target in status.targets}
        if states - {expected}:
            raise CannotMeasureError(
                f"a target is not {pb.TargetStatus.State.Name(expected)}: {result.probes}"
            )

    @asynccontextmanager
    async def reports(self) -> AsyncIterator[None]:
        """Read a stream of reports like an operator, and drop them."""
        stream = self._stub.WatchReports(iter([pb.WatchReportsRequest()]))

        async def forget() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(forget())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def agent(objects: Path, *, prefix: Sequence[str] = ()) -> AsyncIterator[RunningAgent]:
    """Run an agent that keeps its compiled objects there, for the time of the `with` block.

    `prefix`: the beginning of its command, such as `in_cgroup`.
    """
    with (
        tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder,
        tempfile.TemporaryFile("w+") as log,
    ):
        address = Path(folder) / "agent.sock"
        process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs then
            [
                *prefix,
                *(sys.executable, "-P", "-m", "latencyprobe.commands.cli", "agent"),
                *("--socket", address, "--exit-with-parent", "--object-cache", objects),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
                stub: NodeAgentAsyncStub = NodeAgentStub(channel)
                await _wait_until_served(stub)
                yield RunningAgent(process.pid, stub)
        except grpc.aio.AioRpcError as error:
            log.seek(0)
            raise CannotMeasureError(f"{error.details()}\n{log.read()[-2000:]}") from None
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


async def _wait_until_served(stub: NodeAgentAsyncStub) -> None:
    await stub.GetNodeInfo(pb.GetNodeInfoRequest(), wait_for_ready=True, timeout=_READY_S)


@contextmanager
def sleepers(count: int) -> Iterator[list[int]]:
    """Run processes that do nothing, each in its own network namespace; yield their ids."""
    command = ["unshare", "--net", "sleep", "infinity"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        deadline = time.monotonic() + _READY_S
        while any(_netns(process.pid) == _netns("self") for process in processes):
            if time.monotonic() > deadline:
                raise CannotMeasureError("unshare made no network namespaces")
            time.sleep(0.05)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _netns(process: int | str) -> int:
    return Path(f"/proc/{process}/ns/net").stat().st_ino
