"""The runs of programs, by the kernel's own statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from latencyprobe_agent.kernel import libbpf


class Runs(NamedTuple):
    """The runs of programs: their number, and the time of all."""

    number: int
    time_ns: int

    def __sub__(self, before: Runs) -> Runs:
        """Return the runs since then."""
        return Runs(self.number - before.number, self.time_ns - before.time_ns)


class RunStatistics:
    """The runs of some programs, by function. `hooks`: the names of their hooks."""

    def __init__(self, programs: Mapping[str, int], hooks: Mapping[str, str]) -> None:
        self.programs = programs
        self._hooks = hooks

    def runs(self) -> Mapping[str, Runs]:
        """Return the runs of the programs; they do not grow without the statistics."""
        infos = {name: libbpf.program_info(program) for name, program in self.programs.items()}
        return {name: Runs(info.run_cnt, info.run_time_ns) for name, info in infos.items()}

    def hook_of(self, function: str) -> str:
        """Return the name of a program's hook."""
        return self._hooks[function]

    def missed_runs(self) -> int:
        """Return the number of runs that the kernel left out, of all programs.

        A program does not run while it already runs on that CPU. The kernel counts that in
        `recursion_misses` of struct bpf_prog_info, since 5.12.
        """
        infos = map(libbpf.program_info, self.programs.values())
        return sum(info.recursion_misses for info in infos)
