"""The kernel's eBPF programs, and an agent's process that is killed while it has some."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe_agent.kernel.load.cache import CachedObject, ObjectCache
from tests.patience import patient


def programs_of(pid: int) -> set[int]:
    """The ids of the eBPF programs whose descriptors a process holds."""
    return _ids_of(pid, "prog_id:")


def links_of(pid: int) -> set[int]:
    """The ids of the links by which a process's programs are attached."""
    return _ids_of(pid, "link_id:")


def _ids_of(pid: int, field: str) -> set[int]:
    found = set()
    for entry in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            with open(f"/proc/{pid}/fdinfo/{entry}") as lines:
                found |= {int(line.split()[1]) for line in lines if line.startswith(field)}
        except FileNotFoundError:
            continue
    return found


def existing_programs() -> set[int]:
    """The ids of all eBPF programs of this machine."""
    listing = subprocess.run(
        ["bpftool", "prog", "show", "-j"], check=True, capture_output=True, text=True
    )
    return {program["id"] for program in json.loads(listing.stdout)}


def wait_until_gone(programs: set[int]) -> None:
    """The kernel frees programs a grace period after the last descriptor is closed."""
    deadline = time.monotonic() + patient(30)
    while left := programs & existing_programs():
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


AGENT = """
import asyncio, json, sys
from pathlib import Path
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.load import handover
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.patience import patient

handover._COMPILE_TIMEOUT_S = patient(handover._COMPILE_TIMEOUT_S)

async def main():
    engine = KernelEngine(host_netns=1, cache=ObjectCache(Path(sys.argv[1])))
    await engine.use(frozenset(Module), tracing=True)
    coverage = [(stage.name, stage.state, stage.hook, stage.reason) for stage in engine.coverage]
    print(json.dumps(coverage), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class KilledAgent:
    """What an agent's process with all there is said and had, before it was killed.

    `compiled`: the programs that its compiler's process handed over.
    """

    coverage: list[StageCoverage]
    programs: set[int]
    compiled: CachedObject


def killed_agent() -> KilledAgent:
    with tempfile.TemporaryDirectory() as folder:
        objects = Path(folder, "objects")
        command = [sys.executable, "-c", AGENT, str(objects)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            rows = json.loads(process.stdout.readline())
            coverage = [
                StageCoverage(name, CoverageState(state), *said) for name, state, *said in rows
            ]
            programs = programs_of(process.pid)
            assert programs
            assert programs <= existing_programs()
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        with ObjectCache(objects).opened() as opened:
            assert opened is not None
            ((_, compiled),) = opened.newest()
    return KilledAgent(coverage, programs, compiled)
