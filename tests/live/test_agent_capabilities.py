"""Each capability that the chart leaves the agent is needed, and no other is.

What this holds is what charts/latencyprobe/README.md tells of each.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.compiled_once import compiled_once
from tests.live.targets import made_cgroup, until
from tests.patience import patient

NOBODY = ("--reuid=65534", "--regid=65534", "--clear-groups")
EVERYTHING = {
    "attached": True,
    "run_time": True,
    "netns": True,
    "socket": True,
    "on_cgroup": True,
    "lost": "",
    "connects": 1,
}
WITHOUT_SYS_ADMIN = {"run_time": False, "socket": False}
WITHOUT_BOTH = {
    **WITHOUT_SYS_ADMIN,
    "on_cgroup": False,
    "lost": "sock_ops/tcp_set_state is not used: cannot load on_sock_ops: "
    "Operation not permitted (EPERM)",
}


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs that tests.live.confined asks for, with all alternatives."""
    request = KernelEngine(host_netns=1)._builder.request(
        ("tcp", "sched"), tracing=False, udp=False
    )
    handover = asyncio.run(compiled_once().compile(replace(request, complete=True)))
    path = tmp_path_factory.mktemp("compiled") / "object"
    path.write_bytes(handover.content)
    return path


def under(capabilities: str, stranger: int, compiled: Path | None = None) -> dict[str, Any]:
    """What works for root with these capabilities alone, which is what a container's root has.

    Without `compiled` they also have to suffice for the compiler's process.
    """
    names = ",".join(f"+{name.lower()}" for name in capabilities.split())
    netns = Path(f"/proc/{stranger}/ns/net").stat().st_ino
    with made_cgroup() as group:
        done = subprocess.run(
            [
                *("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)),
                *("setpriv", f"--bounding-set=-all,{names}", "--inh-caps=-all", "--no-new-privs"),
                *(sys.executable, "-m", "tests.live.confined"),
                *(str(stranger), str(netns), str(group)),
                *((str(compiled),) if compiled is not None else ()),
            ],
            capture_output=True,
            text=True,
            timeout=patient(60),
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("more", "lacking"),
    [
        ("NET_ADMIN SYS_ADMIN", {}),
        ("SYS_ADMIN", {}),
        ("NET_ADMIN", WITHOUT_SYS_ADMIN),
        ("", WITHOUT_BOTH),
    ],
    ids=["both", "without NET_ADMIN", "without SYS_ADMIN", "without both"],
)
def test_each_choice_of_the_chart_measures_and_says_what_it_lost(
    stranger: int, compiled: Path, more: str, lacking: dict[str, object]
) -> None:
    """Without SYS_ADMIN, run time and other namespaces' devices are missing; see EVERYTHING."""
    given = compiled if more else None  # the fewest are enough to compile
    assert under(f"BPF PERFMON SYS_PTRACE {more}", stranger, given) == EVERYTHING | lacking


def test_without_bpf_there_is_no_map(stranger: int) -> None:
    found = under("PERFMON SYS_PTRACE", stranger)

    assert not found["attached"]
    assert "could not open bpf map" in found["refusal"]
    assert "Operation not permitted" in found["refusal"]


def test_without_perfmon_no_program_traces(stranger: int, compiled: Path) -> None:
    found = under("BPF SYS_PTRACE", stranger, compiled)

    assert not found["attached"]
    assert "the kernel refused every hook" in found["refusal"]
    assert "Operation not permitted (EPERM)" in found["refusal"]


def test_without_sys_ptrace_no_containers_namespace_is_found(stranger: int, compiled: Path) -> None:
    assert under("BPF PERFMON", stranger, compiled) == EVERYTHING | WITHOUT_BOTH | {"netns": False}
