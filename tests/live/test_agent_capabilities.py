"""Each capability that the chart leaves the agent is needed, and no other is.

What this holds is what charts/latencyprobe/README.md tells of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.targets import until

NOBODY = ("--reuid=65534", "--regid=65534", "--clear-groups")
EVERYTHING = {"attached": True, "run_time": True, "netns": True, "socket": True}


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process of another user in a network namespace of its own, as a container's is."""
    command = ["unshare", "--net", "setpriv", *NOBODY, "sleep", "300"]
    with subprocess.Popen(command) as process:
        try:
            name = Path(f"/proc/{process.pid}/comm")
            until(lambda: name.read_text() == "sleep\n", "a process of another user")
            yield process.pid
        finally:
            process.kill()


def under(capabilities: str, stranger: int) -> dict[str, Any]:
    """What works for root with these capabilities alone, which is what a container's root has."""
    names = ",".join(f"+{name.lower()}" for name in capabilities.split())
    netns = Path(f"/proc/{stranger}/ns/net").stat().st_ino
    done = subprocess.run(
        [
            *("setpriv", f"--bounding-set=-all,{names}", "--inh-caps=-all", "--no-new-privs"),
            *(sys.executable, "-m", "tests.live.confined", str(stranger), str(netns)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_four_capabilities_are_enough(stranger: int) -> None:
    assert under("BPF PERFMON SYS_PTRACE SYS_ADMIN", stranger) == EVERYTHING


def test_without_sys_admin_only_run_time_and_other_namespaces_devices_are_missing(
    stranger: int,
) -> None:
    lacking = {"run_time": False, "socket": False}

    assert under("BPF PERFMON SYS_PTRACE", stranger) == EVERYTHING | lacking


def test_without_bpf_there_is_no_map(stranger: int) -> None:
    found = under("PERFMON SYS_PTRACE", stranger)

    assert not found["attached"]
    assert "could not open bpf map" in found["refusal"]
    assert "Operation not permitted" in found["refusal"]


def test_without_perfmon_no_program_traces(stranger: int) -> None:
    found = under("BPF SYS_PTRACE", stranger)

    assert not found["attached"]
    assert "the kernel refused every hook" in found["refusal"]
    assert "Operation not permitted (EPERM)" in found["refusal"]


def test_without_sys_ptrace_no_containers_namespace_is_found(stranger: int) -> None:
    lacking = {"netns": False, "run_time": False, "socket": False}

    assert under("BPF PERFMON", stranger) == EVERYTHING | lacking
