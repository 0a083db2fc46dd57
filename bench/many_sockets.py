"""The kernel memory that the sockets of targets take of the agent.

The agent runs in a memory cgroup of its own. A target is a cgroup with a process in a network
namespace of its own, whose children make connections to themselves. Each connection is two sockets,
and carries a request and its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.agent_process import agent
from bench.network import in_cgroup
from bench.outcome import CannotMeasureError
from bench.pods import cgroup
from bench.watched_process import Cost, Meter
from latencyprobe.process.mounts import read_mounts
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

_MIB = 1 << 20
_MADE_S = 300.0
_READING_S = 12.0  # the agent's interval, and a little
# The kernel frees them a little later.
_FREED_S = 5.0
# So that each has open files enough, and ports.
_CONNECTIONS_OF_A_CHILD = 6000
_BATCH = 500
_TARGET = f"""
import os, resource, socket, sys

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
left = int(sys.argv[1]) // 2
sys.stdin.readline()
children, (held, hold) = [], os.pipe()
while left > 0:
    count = min(left, {_CONNECTIONS_OF_A_CHILD})
    left -= count
    ready, done = os.pipe()
    if not os.fork():
        os.close(hold)
        listener = socket.create_server((f"127.0.1.{{1 + len(children)}}", 0), backlog={_BATCH})
        kept = []
        while len(kept) < count:
            begun = [
                socket.create_connection(listener.getsockname())
                for _ in range(min({_BATCH}, count - len(kept)))
            ]
            for client in begun:
                server = listener.accept()[0]
                kept.append((client, server))
            for client in begun:
                client.sendall(b"q" * 100)
            for client, server in kept[-len(begun):]:
                server.recv(100, socket.MSG_WAITALL)
                server.sendall(b"r" * 100)
            for client in begun:
                client.recv(100, socket.MSG_WAITALL)
        os.write(done, b"r")
        os.read(held, 1)
        os._exit(0)
    os.close(done)
    children.append(ready)
for ready in children:
    if os.read(ready, 1) != b"r":
        sys.exit("a child could not make its connections")
print("made", flush=True)
sys.stdin.readline()
os.close(hold)
while children:
    os.wait()
    children.pop()
print("closed", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class SocketMemory:
    """The kernel memory of the agent's cgroup: before the sockets, with them, and after them."""

    sockets: int
    targets: int
    before_mib: float
    with_mib: float
    after_mib: float
    applied_ms: float
    """Apply with the sockets there: of a state without change."""
    cost: Cost

    @property
    def kib_of_a_socket(self) -> float:
        """The memory that one socket took."""
        return (self.with_mib - self.before_mib) * 1024 / self.sockets


async def measure(sockets: int, targets: int) -> SocketMemory:
    """Make so many sockets, in as many processes as there are targets."""
    with (
        tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder,
        _memory_cgroup() as group,
        _targets(sockets, targets) as processes,
    ):
        async with (
            agent(Path(folder) / "objects", prefix=in_cgroup(group)) as running,
            running.reports(),
        ):
            selected = [pb.Target(id=str(path), cgroup_path=bytes(path)) for path in processes]
            await running.attach(selected)
            await asyncio.sleep(_READING_S)
            before = _kernel_mib(group)
            meter = Meter(running.pid)
            await asyncio.to_thread(_order, processes.values(), "make")
            await asyncio.sleep(_READING_S)
            most = _kernel_mib(group)
            applied_s = await running.attach(selected)
            cost = await meter.cost(0)
            await asyncio.to_thread(_order, processes.values(), "close")
            await asyncio.sleep(_FREED_S)
            after = _kernel_mib(group)
    return SocketMemory(sockets, targets, before, most, after, 1000 * applied_s, cost)


@contextmanager
def _targets(sockets: int, targets: int) -> Iterator[dict[Path, subprocess.Popen[str]]]:
    """Run the targets, and yield their processes by their cgroups.

    Each makes its sockets at a line, and closes them at another one.
    """
    command = 'ip link set lo up && exec "$@"'
    with ExitStack() as stack:
        made = {}
        for number in range(targets):
            group = stack.enter_context(cgroup(f"sockets{number}"))
            process = subprocess.Popen(
                [
                    *in_cgroup(group),
                    *("unshare", "--net", "sh", "-c", command, "sh"),
                    *(sys.executable, "-c", _TARGET, str(sockets // targets)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(_end, process)
            made[group] = process
        deadline = time.monotonic() + _MADE_S
        while any(_netns(process.pid) == _netns("self") for process in made.values()):
            if time.monotonic() > deadline:
                raise CannotMeasureError("unshare made no network namespaces")
            time.sleep(0.05)
        yield made


def _end(process: subprocess.Popen[str]) -> None:
    # The end of its input ends it, with its children.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_MADE_S)
    process.kill()
    process.wait()


def _order(processes: Collection[subprocess.Popen[str]], order: str) -> None:
    """Have all targets make their sockets, or close them."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{order}\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise CannotMeasureError(f"a target could not {order} its sockets")


def _netns(process: int | str) -> int:
    return Path(f"/proc/{process}/ns/net").stat().st_ino


@contextmanager
def _memory_cgroup() -> Iterator[Path]:
    """Make a memory cgroup, for the time of the block."""
    for mount in read_mounts():
        if mount.fstype not in ("cgroup", "cgroup2"):
            continue
        if mount.fstype == "cgroup" and "memory" not in mount.options:
            continue
        group = Path(mount.point) / f"latencyprobe-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if _kernel_bytes(group) is not None:
                yield group
                return
        finally:
            _remove(group)
    raise CannotMeasureError("there is no memory cgroup that counts kernel memory")


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _kernel_mib(group: Path) -> float:
    found = _kernel_bytes(group)
    assert found is not None
    return found / _MIB


def _kernel_bytes(group: Path) -> int | None:
    """Return the kernel memory of a cgroup; None if it is not counted."""
    with contextlib.suppress(OSError):
        return int((group / "memory.kmem.usage_in_bytes").read_text())
    with contextlib.suppress(OSError):
        for line in (group / "memory.stat").read_text().splitlines():
            if line.startswith("kernel "):  # 5.18+
                return int(line.split()[1])
    return None
