"""`latencyprobe run` for real: counts as a program says it sent, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.command import DEADLINE_S, LATENCYPROBE, wait_until_it_measures
from tests.live.leftovers import Traces
from tests.live.targets import made_cgroup, sleeper, until

REQUESTS = 150
# Asks itself over loopback and says nothing else on stdout: REQUESTS each over IPv4 and IPv6.
TALKER = """
import socket, sys, threading

def answer(listener, requests):
    connection, _ = listener.accept()
    for _ in range(requests):
        connection.sendall(connection.recv(64))

requests = int(sys.argv[1])
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    listener = socket.create_server((host, 0), family=family)
    server = threading.Thread(target=answer, args=(listener, requests))
    server.start()
    client = socket.create_connection(listener.getsockname()[:2])
    for _ in range(requests):
        client.sendall(bytes(64))
        client.recv(64)
    server.join()
print("talked")
sys.exit(9)
"""


@pytest.fixture(autouse=True)
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    """Sees to it that nothing is left behind."""
    watch = Traces(tmp_path_factory.mktemp("temporary"))
    yield watch
    watch.assert_gone()


def run(
    traces: Traces, *arguments: str, directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LATENCYPROBE, "run", *arguments],
        env=traces.environment,
        cwd=directory,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def counts(target: dict[str, Any]) -> dict[str, int]:
    return {stage["name"]: stage["count"] for stage in target["stages"]}


def test_a_commands_packets_are_counted_from_the_first(traces: Traces, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    output = ["-o", "json", "--output-file", str(report)]
    ended = run(traces, *output, "--", *talker(REQUESTS))
    assert (ended.returncode, ended.stdout) == (9, "talked\n"), ended.stderr
    (target,) = json.loads(report.read_text())["targets"]
    seen = counts(target)
    # Both ends are the target: each request and each answer is received, over IPv4 and IPv6.
    assert seen["rx.socket"] == seen["rx.total"] == 4 * REQUESTS
    again = target["counters"].get("retransmits", 0)
    assert 4 * REQUESTS <= seen["tx.total"] <= 4 * REQUESTS + again
    assert seen["tcp.connect"] == seen["tcp.handshake"] == 2
    assert not any(stage["lost"] for stage in target["stages"])


def test_a_cgroup_whose_name_is_no_text_is_measured_on_a_terminal_without_our_characters(
    traces: Traces,
) -> None:
    with made_cgroup(os.fsdecode(b"caf\xe9")) as cgroup, sleeper(cgroup=cgroup) as process:
        until(lambda: str(process.pid) in (cgroup / "cgroup.procs").read_text(), "its start")
        ended = subprocess.run(
            [*LATENCYPROBE, "run", "--cgroup", cgroup, "--duration", "1s", "-o", "json"],
            env={**traces.environment, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
            check=False,
            capture_output=True,
            timeout=DEADLINE_S,
        )
    assert ended.returncode == 0, ended.stderr
    (target,) = json.loads(ended.stdout)["targets"]
    assert target["pids"] == [process.pid]
    assert target["cgroup"].endswith("/caf\\udce9")


def test_the_parts_of_a_total_add_up_to_it(traces: Traces, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    run(traces, "-o", "json", "--output-file", str(report), "--", *talker(REQUESTS))
    (target,) = json.loads(report.read_text())["targets"]
    for total in ("rx.total", "tx.total"):
        module = total.partition(".")[0]
        whole = next(stage for stage in target["stages"] if stage["name"] == total)
        parts_ns = sum(
            stage["meanNs"] * stage["count"]
            for stage in target["stages"]
            if stage["name"].startswith(module) and stage["name"] != total
        )
        assert parts_ns == pytest.approx(whole["meanNs"] * whole["count"], rel=0.01)


def test_modules_in_the_working_directory_are_not_executed(traces: Traces, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    planted = tmp_path / "planted"
    planted.mkdir()
    for name in ("bcc", "json", "socket", "types", "click", "grpc", "latencyprobe_agent"):
        (planted / f"{name}.py").write_text(f"open({str(proof)!r}, 'a').write({name!r})\n")

    ended = run(traces, "-o", "json", "--", *talker(1), directory=planted)

    assert ended.returncode == 9, ended.stderr
    assert not proof.exists(), f"executed: {proof.read_text()}"


def talker(requests: int) -> list[str]:
    return ["/usr/bin/python3", "-I", "-c", TALKER, str(requests)]


def test_only_the_asked_for_port_is_measured(traces: Traces) -> None:
    with echo_server() as wanted, echo_server() as other:
        pid = str(os.getpid())
        process = subprocess.Popen(
            [*LATENCYPROBE, "run", "-o", "json", "--pid", pid, "--port", str(wanted)],
            env=traces.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until_it_measures(process)
        ask(wanted, 20)
        ask(other, 500)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    (target,) = json.loads(stdout)["targets"]
    assert os.getpid() in target["pids"]
    assert counts(target)["rx.total"] == 2 * 20


class echo_server:  # noqa: N801 (used like a function)
    """A TCP echo server in a thread of this process; gives its port."""

    def __enter__(self) -> int:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        port = self._listener.getsockname()[1]
        assert isinstance(port, int)
        return port

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while data := connection.recv(64):
                connection.sendall(data)


def ask(port: int, requests: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        for _ in range(requests):
            client.sendall(bytes(64))
            client.recv(64)


def test_a_process_that_is_gone_is_an_error(traces: Traces) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    ended = run(traces, "--pid", str(gone.pid))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"no such process: {gone.pid}" in ended.stderr


def test_a_thread_is_an_error_that_names_its_process(traces: Traces) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        ended = run(traces, "--pid", str(thread.native_id))
    finally:
        stop.set()
        thread.join()
    assert ended.returncode == 1
    assert f"{thread.native_id} is a thread of process {os.getpid()}" in ended.stderr


def test_a_directory_that_is_no_cgroup_is_an_error(traces: Traces, tmp_path: Path) -> None:
    ended = run(traces, "--cgroup", str(tmp_path))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"{tmp_path} is a directory but not a cgroup" in ended.stderr


def test_nothing_is_left_after_a_kill(traces: Traces) -> None:
    """The agent goes although nobody could tell it to, and takes its programs along."""
    process = subprocess.Popen(
        [*LATENCYPROBE, "run", "--pid", str(os.getpid())],
        env=traces.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until_it_measures(process)
    assert {"processes", "files"} <= traces.left().keys()
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    traces.assert_gone()
