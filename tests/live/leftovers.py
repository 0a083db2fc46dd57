"""What a run could leave behind on the machine. Other runs may be going on beside it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.patience import patient

# The kernel frees programs in its own time, and on a busy machine processes end in theirs.
PATIENCE_SECONDS = patient(30)


class Traces:
    """Watches over what is started with `environment`, wherever it forks to."""

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary
        self._programs_before = _program_ids()
        self._interfaces_before = _interfaces()

    @property
    def environment(self) -> Mapping[str, str]:
        """What to start it with: everything that it starts has its temporary files there too."""
        return {**os.environ, "TMPDIR": str(self._temporary)}

    def assert_gone(self) -> None:
        """Wait until nothing of it is there any more."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.left():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.1)

    def left(self) -> dict[str, object]:
        """What is there of it now, by kind."""
        found = {
            "processes": list(self._processes()),
            "eBPF programs": sorted(_unheld_program_ids() - self._programs_before),
            "interfaces": sorted(
                name
                for name in _interfaces() - self._interfaces_before
                if not name.startswith("lpc-")  # of clusters that are tested beside us
            ),
            # An empty directory is all that a SIGKILL may leave: nobody is there to remove it.
            "files": [str(path) for path in self._temporary.rglob("*") if not path.is_dir()],
        }
        return {kind: things for kind, things in found.items() if things}

    def _processes(self) -> Iterator[str]:
        mark = f"TMPDIR={self._temporary}/"
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = os.fsdecode((directory / "environ").read_bytes()).split("\0")
                if any(f"{variable}/".startswith(mark) for variable in variables):
                    command = (directory / "cmdline").read_bytes().replace(b"\0", b" ")
                    yield f"{directory.name}: {command.decode(errors='replace')}"


def _program_ids() -> frozenset[int]:
    printed = subprocess.run(
        ["bpftool", "--json", "prog", "show"], check=True, capture_output=True, text=True
    ).stdout
    return frozenset(entry["id"] for entry in json.loads(printed or "[]"))


def held_program_ids(pid: int | None = None) -> set[int]:
    """Programs that a process holds, or any one, directly or by a link: bpf_prog_show_fdinfo() and
    bpf_link_show_fdinfo(), kernel/bpf/syscall.c."""
    held = set()
    for path in Path("/proc").glob(f"{pid or '[0-9]*'}/fdinfo/*"):
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="ascii").splitlines():
                if line.startswith("prog_id:"):
                    held.add(int(line.split()[1]))
    return held


def _unheld_program_ids() -> frozenset[int]:
    """Held ones are somebody else's business, and ours when the process is ours."""
    loaded = _program_ids()
    return loaded - held_program_ids()


def _interfaces() -> frozenset[str]:
    return frozenset(path.name for path in Path("/sys/class/net").iterdir())
