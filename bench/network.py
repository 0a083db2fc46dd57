"""Two network namespaces of our own with a veth pair between them, and traffic over it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.outcome import CannotMeasureError

# For benchmarks of network devices, RFC 2544; it is used inside our namespaces alone.
CLIENT_ADDRESS = "198.18.0.1"
SERVER_ADDRESS = "198.18.0.2"
MESSAGE_BYTES = 64
# Others that run on the CPU get next to nothing of it.
FIRST = ("nice", "-n", "-20")
_WARM_UP_TRANSACTIONS = 200  # as in request_response.c: done, but not timed
_SOURCE = Path(__file__).with_name("request_response.c")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A named network namespace."""

    name: str

    @property
    def path(self) -> Path:
        """The file that keeps it alive."""
        return Path("/run/netns") / self.name

    @property
    def inode(self) -> int:
        """The number by which the kernel's programs identify it."""
        return self.path.stat().st_ino


@dataclass(frozen=True, slots=True)
class Network:
    """Two namespaces joined by a veth pair, and a separate third one."""

    client: Namespace
    server: Namespace
    apart: Namespace

    @property
    def ends(self) -> frozenset[int]:
        """The inode numbers of both ends' namespaces."""
        return frozenset({self.client.inode, self.server.inode})


def own_netns() -> int:
    """Return the inode number of the current namespace."""
    return Path("/proc/self/ns/net").stat().st_ino


@contextmanager
def namespaces(*ends: str) -> Iterator[list[Namespace]]:
    """Make namespaces for the time of the `with` block; their names end so."""
    made: list[Namespace] = []
    try:
        for end in ends:
            namespace = Namespace(f"lpbench{os.getpid()}{end}")
            ip("netns", "add", namespace.name)
            made.append(namespace)
            ip("-n", namespace.name, "link", "set", "lo", "up")
        yield made
    finally:
        for namespace in made:
            ip("netns", "delete", namespace.name)


@contextmanager
def network(name: str = "") -> Iterator[Network]:
    """Make the namespaces for the time of the `with` block; `name`: one of several at once."""
    with namespaces(*(f"{name}{end}" for end in ("client", "server", "apart"))) as made:
        net = Network(*made)
        _join(net)
        yield net


def _join(net: Network) -> None:
    client, server = net.client.name, net.server.name
    ends = ("name", "veth0", "netns", client), ("name", "veth0", "netns", server)
    ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
    for name, address in ((client, CLIENT_ADDRESS), (server, SERVER_ADDRESS)):
        # no address resolution and no IPv6 housekeeping between our packets
        ip("-n", name, "link", "set", "veth0", "addrgenmode", "none")
        ip("-n", name, "address", "add", f"{address}/30", "dev", "veth0")
        ip("-n", name, "link", "set", "veth0", "up")


def ip(*arguments: str) -> None:
    """Run `ip`; raise CannotMeasureError with its answer if it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasureError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Exchanged:
    """The number of answered requests, and the time for them."""

    transactions: int
    seconds: float

    @property
    def packets(self) -> int:
        """Each request and each response is one packet, and carries the other's ACK."""
        return 2 * (self.transactions + _WARM_UP_TRANSACTIONS)

    @property
    def rate(self) -> float:
        """Transactions per second."""
        return self.transactions / self.seconds


class Traffic:
    """A client and a server in C, which exchange on command. Made by `traffic`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def exchange(self, seconds: float) -> Exchanged:
        """Exchange requests and responses on a connection of their own."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{round(seconds * 1000)}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise CannotMeasureError(
                "the traffic program has ended: its error is printed above"
            ) from None
        words = self._process.stdout.readline().split()
        if len(words) != 2:
            raise CannotMeasureError("the traffic program has ended: its error is printed above")
        return Exchanged(int(words[0]), int(words[1]) / 1e9)


@contextmanager
def compiled(source: Path) -> Iterator[Path]:
    """Compile a program in C, for the time of the `with` block."""
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder:
        program = Path(folder) / source.stem
        subprocess.run(["gcc", "-O2", "-Wall", "-o", program, source], check=True)
        yield program


@contextmanager
def compiled_traffic() -> Iterator[Path]:
    """Compile the traffic program, for the time of the `with` block."""
    with compiled(_SOURCE) as program:
        yield program


def last_cpu() -> int:
    """Return the CPU that a benchmark's programs share, unless it names another."""
    return max(os.sched_getaffinity(0))


@contextmanager
def traffic(
    program: Path,
    client: Namespace,
    server: Namespace | None,
    address: str = SERVER_ADDRESS,
    *,
    cpu: int | None = None,
    cgroup: Path | None = None,
) -> Iterator[Traffic]:
    """Run client and server in their namespaces, both on one CPU: our last one by default.

    `server`: None if the address answers on port 7 by itself. `cgroup`: that of both.
    """
    process = subprocess.Popen(
        [
            *(() if cgroup is None else in_cgroup(cgroup)),
            *FIRST,
            *(program, client.path, "-" if server is None else server.path, address),
            *(str(last_cpu() if cpu is None else cpu), str(MESSAGE_BYTES)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Traffic(process)
    finally:
        process.kill()  # its server dies with it
        process.communicate()


def in_cgroup(directory: Path) -> tuple[str, ...]:
    """Return the beginning of a command that runs in a cgroup."""
    return ("sh", "-c", f'echo $$ > {directory}/cgroup.procs && exec "$@"', "sh")
