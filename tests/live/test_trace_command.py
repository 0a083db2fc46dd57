"""`latencyprobe trace` for real: one line a slow packet, as a program says it was, and no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latencyprobe.domain.packets import parts_of_packet
from latencyprobe.domain.stages import parts_of
from tests.live.command import DEADLINE_S, LATENCYPROBE, wait_until_it_measures
from tests.live.hidden_events import MOST_HIDDEN
from tests.live.leftovers import Traces
from tests.live.pods import Namespace
from tests.live.sockets import sent_again
from tests.live.truth import BUCKET
from tests.unit.command_process import closing

MS = 1_000_000
REQUESTS = 40
# Asks itself over loopback, REQUESTS times each over TCP and UDP, IPv4, IPv6 and IPv4 in an IPv6
# socket. The server sleeps for as many milliseconds before it reads. With "wait" it begins on a
# line of standard input. Says of each message between which times it was sent, and between which it
# was read.
TALKER = """
import fcntl, json, socket, sys, termios, threading, time

requests, delay_ms = int(sys.argv[1]), float(sys.argv[2])
if "wait" in sys.argv:
    print("ready", flush=True)
    sys.stdin.readline()
now = time.monotonic_ns
accounts = []

def waits(end):
    return any(fcntl.ioctl(end.fileno(), termios.FIONREAD, bytes(4)))

V4, V6 = socket.AF_INET, socket.AF_INET6
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for family, bound, asked_family, asked in (
        (V4, "127.0.0.1", V4, "127.0.0.1"), (V6, "::1", V6, "::1"), (V6, "::", V4, "127.0.0.1")
    ):
        server = socket.socket(family, kind)
        if bound == "::":
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((bound, 0))
        client = socket.socket(asked_family, kind)
        if kind == socket.SOCK_STREAM:
            server.listen()
        client.connect((asked, server.getsockname()[1]))
        if kind == socket.SOCK_STREAM:
            server, _ = server.accept()

        asked, came, answered, read, got = [], [], [], [], []

        def answer():
            for _ in range(requests):
                time.sleep(delay_ms / 1e3)
                began = now()
                request, peer = server.recvfrom(64)
                read.append((began, now()))
                answered.append(now())
                server.sendall(request) if peer is None else server.sendto(request, peer)

        thread = threading.Thread(target=answer)
        thread.start()
        for number in range(1, requests + 1):
            asked.append(now())
            client.send(bytes(64))
            while delay_ms and len(read) < number and not waits(server):
                pass
            came.append(now())
            began = now()
            client.recv(64)
            got.append((began, now()))
        thread.join()
        accounts += [(sent, there, *times) for sent, there, times in zip(asked, came, read)]
        # When an answer came is not known: just before it was read, perhaps.
        accounts += [(sent, times[1], *times) for sent, times in zip(answered, got)]
print(json.dumps(accounts))
print("talked")
sys.exit(9)
"""
CONVERSATIONS = 6
OWN_NAMESPACE = Namespace("/proc/self/ns/net")  # an absolute name is the path itself


@pytest.fixture(autouse=True)
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    """Sees to it that nothing is left behind."""
    watch = Traces(tmp_path_factory.mktemp("temporary"))
    yield watch
    watch.assert_gone()


def talker(requests: int, delay_ms: float, *more: str) -> tuple[str, ...]:
    return (sys.executable, "-c", TALKER, str(requests), str(delay_ms), *more)


def trace(traces: Traces, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LATENCYPROBE, "trace", *arguments],
        env=traces.environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def start(traces: Traces, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LATENCYPROBE, "trace", *arguments],
        env=traces.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def assert_parts_add_up(packets: list[dict[str, Any]]) -> None:
    for packet in packets:
        parts = parts_of(packet["total"])
        assert sum(packet["stagesNs"][part.name] or 0 for part in parts) == packet["totalNs"]


def untimed(stderr: str) -> int:
    """How many packets the command says it could not time."""
    said = [line for line in stderr.splitlines() if "could not be timed" in line]
    return int(said[0].split()[1].replace(",", "")) if said else 0


def limits_of_waits(accounts: list[list[int]]) -> tuple[list[int], list[int]]:
    """How long messages waited to be read, at least and at most, each with the longest first."""
    at_least = (max(0, not_read - there) for _, there, not_read, _ in accounts)
    at_most = (read - unsent for unsent, _, _, read in accounts)
    return sorted(at_least, reverse=True), sorted(at_most, reverse=True)


def test_each_request_that_a_sleeping_server_kept_waiting_is_a_line(
    traces: Traces, tmp_path: Path
) -> None:
    path = tmp_path / "packets.json"
    ended = trace(
        *(traces, "--stage", "rx.socket", "--min", "3ms", "-o", "json"),
        *("--output-file", str(path), "--", *talker(REQUESTS, 5)),
    )
    assert ended.returncode == 9, ended.stderr
    accounts, said = ended.stdout.splitlines()
    assert said == "talked"
    packets = documents(path.read_text())
    assert_parts_add_up(packets)
    figures = closing(ended.stderr)
    assert (figures["printed"], figures["limited"], figures["lost"]) == (len(packets), 0, 0)
    waits_ns = sorted((packet["stagesNs"]["rx.socket"] for packet in packets), reverse=True)
    # A client that is held up asks while the server already sleeps, or is kept waiting itself.
    shortest_ns, longest_ns = limits_of_waits(json.loads(accounts))
    surely, possibly = (sum(ns >= 3 * MS for ns in each) for each in (shortest_ns, longest_ns))
    unseen = untimed(ended.stderr) + MOST_HIDDEN
    assert 0 < surely - unseen <= len(packets) <= possibly
    assert waits_ns[-1] >= 3 * MS
    limits = zip(waits_ns, shortest_ns[unseen:], longest_ns, strict=False)
    for wait_ns, at_least_ns, at_most_ns in limits:
        assert at_least_ns / BUCKET <= wait_ns <= at_most_ns * BUCKET
    seen = {(p["protocol"], p["localAddress"], p["remoteAddress"]) for p in packets}
    assert seen == {
        (protocol, address, address)
        for protocol in ("TCP", "UDP")
        for address in ("127.0.0.1", "::1")
    }
    assert all(isinstance(p[name], int) for p in packets for name in ("pid", "cpu", "localPort"))
    assert {p["command"] for p in packets} == {Path(sys.executable).name[:15]}


def test_a_flood_is_limited_and_every_packet_accounted_for(traces: Traces, tmp_path: Path) -> None:
    path = tmp_path / "packets.json"
    options = ("--min", "0ns", "--max-rate", "50", "-o", "json", "--output-file", str(path))
    before = sent_again(OWN_NAMESPACE)
    ended = trace(traces, *options, "--", *talker(10 * REQUESTS, 0))
    packets = documents(path.read_text())
    assert_parts_add_up(packets)
    figures = closing(ended.stderr)
    assert figures["printed"] == len(packets)
    assert 50 <= figures["printed"] < 1000
    assert figures["lost"] == 0
    # Both ends are the target: each request and each answer is sent and received. What is missing
    # was counted as unmatched (a datagram that its reader took before we were told of it).
    sent = 4 * CONVERSATIONS * 10 * REQUESTS
    missing = untimed(ended.stderr)
    assert sent <= figures["seen"] + missing <= sent + sent_again(OWN_NAMESPACE) - before
    assert missing < 0.02 * sent
    assert {packet["total"] for packet in packets} == {"rx.total", "tx.total"}


def test_a_target_that_exits_ends_the_trace_and_is_named(traces: Traces) -> None:
    with subprocess.Popen(
        talker(REQUESTS, 5, "wait"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as target:
        assert target.stdout is not None
        assert target.stdout.readline() == "ready\n"
        with start(traces, "--pid", str(target.pid), "--min", "3ms", "-o", "json") as process:
            wait_until_it_measures(process)
            target.communicate("\n", timeout=DEADLINE_S)
            stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    assert f"[{target.pid}]: " in stderr
    assert closing(stderr)["printed"] == len(documents(stdout)) > CONVERSATIONS * REQUESTS / 2
    assert {packet["pid"] for packet in documents(stdout)} == {target.pid}


@pytest.mark.parametrize("end", ["signal", "head"])
def test_a_trace_that_is_broken_off_says_what_it_saw(traces: Traces, end: str) -> None:
    with (
        subprocess.Popen(
            talker(100_000, 5, "wait"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as target,
        start(traces, "--pid", str(target.pid), "--min", "1ms") as process,
    ):
        assert target.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        wait_until_it_measures(process)
        target.stdin.write("\n")
        target.stdin.flush()
        lines = [process.stdout.readline() for _ in range(3)]
        if end == "signal":
            process.send_signal(signal.SIGINT)
        else:
            process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(timeout=DEADLINE_S) == 0, stderr
        target.kill()
    assert "TIME" in lines[0]
    assert all("rx.total" in line and "socket" in line for line in lines[1:])
    assert "Traceback" not in stderr
    assert closing(stderr)["printed"] >= 2


def test_only_the_stage_that_is_asked_for_is_held_against_the_limit(
    traces: Traces, tmp_path: Path
) -> None:
    path = tmp_path / "packets.json"
    options = ("--stage", "tx.qdisc", "--min", "3ms", "-o", "json", "--output-file", str(path))
    ended = trace(traces, *options, "--", *talker(REQUESTS, 5))
    packets = documents(path.read_text())
    # The server's sleep is nobody's departure; a CPU that was taken away in between may be one.
    assert len(packets) == closing(ended.stderr)["printed"] < 0.05 * CONVERSATIONS * REQUESTS
    assert all(packet["stagesNs"]["tx.qdisc"] >= 3 * MS for packet in packets)


def test_the_stages_are_those_of_the_table(traces: Traces, tmp_path: Path) -> None:
    path = tmp_path / "packets.json"
    options = ("--min", "0ns", "-o", "json", "--output-file", str(path))
    trace(traces, *options, "--", *talker(2, 0))
    for packet in documents(path.read_text()):
        stages = [stage.name for stage in parts_of_packet(packet["total"])]
        assert list(packet["stagesNs"]) == stages
        assert packet["pid"] != os.getpid()
