"""RPS: devices that leave packets to another CPU, and a CPU whose softirqs come late."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.live.netfilter import take_time
from tests.live.pods import Namespace, namespace

SEND_WITHOUT_END = """
import socket
sending = socket.socket(type=socket.SOCK_DGRAM)
while True:
    sending.sendto(b"d", ("192.0.2.2", 9))
    print(flush=True)
"""


def steer(there: Namespace, device: str, cpu: int) -> None:
    """RPS: whoever sends by the device, this CPU receives."""
    steering = f"echo {1 << cpu:x} > /sys/class/net/{device}/queues/rx-0/rps_cpus"
    there.execute("sh", "-c", steering)


@contextmanager
def away_from(cpu: int) -> Iterator[None]:
    """This thread runs on the other CPUs."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, allowed - {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def without_softirqs(cpu: int) -> Iterator[None]:
    """What waits for a softirq of this CPU waits milliseconds.

    A process sends there by a bridge whose netfilter takes its time: br_dev_xmit() runs with
    softirqs disabled.
    """
    with namespace("slow") as slow:
        slow.ip("link", "add", "br0", "type", "bridge")
        slow.ip("address", "add", "192.0.2.1/24", "dev", "br0")
        slow.ip("link", "add", "port", "type", "veth", "peer", "name", "end")
        for device in ("port", "end", "br0"):
            slow.ip("link", "set", device, "up")
        slow.ip("link", "set", "port", "master", "br0")
        slow.ip("neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "br0")
        take_time(slow, "ip daddr 192.0.2.2", "output", family="bridge")
        command = ["ip", "netns", "exec", slow.name, "nice", "--adjustment=-20"]
        command += ["taskset", "--cpu-list", str(cpu)]
        command += [sys.executable, "-c", SEND_WITHOUT_END]
        sending = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert sending.stdout is not None
        try:
            sending.stdout.readline()
            yield
        finally:
            sending.kill()
            sending.communicate()
