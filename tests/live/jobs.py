"""A pod's sandbox, and containers in it that ask a server and end, from their first packet on."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.live.pods import Namespace, Pod
from tests.live.targets import sleeper

# A container's program: it connects in its first instant, asks, and ends.
JOB = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000)) as asking:
    for _ in range(int(sys.argv[2])):
        asking.sendall(b"q" * 64)
        left = 128
        while left:
            left -= len(asking.recv(left))
"""
# Another's: datagrams to a port, of which the kernel may refuse to send any.
DATAGRAMS = """
import contextlib, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
    for _ in range(int(sys.argv[2])):
        with contextlib.suppress(PermissionError):
            sending.sendto(b"d", (sys.argv[1], 7000))
"""
# Another's: it reads the only answer so many milliseconds after that has come.
SLOW_READER = """
import select, socket, sys, time
with socket.create_connection((sys.argv[1], 7000)) as asking:
    asking.sendall(b"q")
    select.select([asking], [], [])
    time.sleep(int(sys.argv[2]) / 1000)
    asking.recv(128)
"""


@contextlib.contextmanager
def sandbox(pod: Pod, directory: Path) -> Iterator[Path]:
    """A pod's cgroup, and in it a process that holds the network namespace."""
    pause = directory / "pause"
    pause.mkdir()
    join = f"echo $$ > {pause}/cgroup.procs && exec sleep 300"
    with sleeper("nsenter", f"--net={pod.namespace.path}", "sh", "-c", join):
        yield directory


def start_job(
    namespace: Namespace, directory: Path, address: str, requests: int
) -> subprocess.Popen[bytes]:
    """Start a container that asks a server so often, and ends."""
    return _start(JOB, namespace, directory, address, requests)


def start_datagrams(
    namespace: Namespace, directory: Path, address: str, count: int
) -> subprocess.Popen[bytes]:
    """Start a container that sends so many datagrams to port 7000, and ends."""
    return _start(DATAGRAMS, namespace, directory, address, count)


def start_slow_reader(
    namespace: Namespace, directory: Path, address: str, delay_ms: int
) -> subprocess.Popen[bytes]:
    """Start a container that reads one answer late, and ends."""
    return _start(SLOW_READER, namespace, directory, address, delay_ms)


def _start(
    code: str, namespace: Namespace, directory: Path, address: str, number: int
) -> subprocess.Popen[bytes]:
    """Join the cgroup and the namespace as a runtime does, then run the program."""
    directory.mkdir(exist_ok=True)
    join = f"echo $$ > {directory}/cgroup.procs && exec ip netns exec {namespace.name}"
    program = [sys.executable, "-ISc", code, address, str(number)]
    return subprocess.Popen(["sh", "-c", f'{join} "$@"', "sh", *program])


def answer_job(listener: socket.socket, requests: int) -> None:
    """Accept a job's connection, and answer its requests."""
    answering, _ = listener.accept()
    with answering:
        for _ in range(requests):
            left = 64
            while left:
                left -= len(answering.recv(left))
            answering.sendall(b"r" * 128)
        answering.recv(1)
