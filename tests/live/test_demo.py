"""`latencyprobe demo` for real: it finds the fault, agrees with its client, and cleans up."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.live.leftovers import Traces

DEMO = [sys.executable, "-P", "-m", "latencyprobe.commands.cli", "demo"]
DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    """Sees to it that nothing is left behind."""
    watch = Traces(tmp_path_factory.mktemp("temporary"))
    yield watch
    watch.assert_gone()


def test_the_demo_finds_the_slow_server_and_agrees_with_its_client(traces: Traces) -> None:
    ended = subprocess.run(
        [*DEMO, "--duration", "3s", "-o", "json"],
        env=traces.environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ended.returncode == 0, ended.stderr
    server, client = json.loads(ended.stdout)["targets"]
    assert (server["name"], client["name"]) == ("server", "client")
    assert server["verdict"]["bottleneck"] == "SlowReader"
    assert server["verdict"]["stage"] == "rx.socket"

    said = re.search(r"(\d+) connections, (\d+) requests, (\d+) datagrams", ended.stderr)
    assert said
    connections, requests, datagrams = map(int, said.groups())
    assert requests > 100
    received = {stage["name"]: stage for stage in server["stages"]}
    sent = {stage["name"]: stage for stage in client["stages"]}
    # A reader that is awake can take a datagram in the instant before we are told of it.
    unmatched = received["rx.socket"]["unmatched"] + received["rx.stack"]["unmatched"]
    assert received["rx.total"]["count"] + unmatched == requests + datagrams
    assert unmatched <= datagrams // 100
    again = sent["tx.total"]["count"] - requests - datagrams
    assert 0 <= again <= client["counters"].get("retransmits", 0)
    assert received["tcp.handshake"]["count"] == sent["tcp.connect"]["count"] == connections
    # Half of the time the server does something else, for 10 ms.
    assert received["rx.socket"]["p99Ns"] > 1_000_000
    assert received["rx.stack"]["p50Ns"] < 1_000_000


def test_the_table_ends_with_a_verdict_for_each_target(traces: Traces) -> None:
    ended = subprocess.run(
        [*DEMO, "--duration", "1s"],
        env=traces.environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ended.stdout.count("verdict: ") == 2
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_early_with_a_report(traces: Traces, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*DEMO, "--duration", "10m"],
        env=traces.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "attached in" in line:
            break
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert stdout.count("verdict: ") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_early_it_ends(traces: Traces, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*DEMO], env=traces.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "attaching" in process.stderr.readline()
    process.send_signal(number)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode != 0
