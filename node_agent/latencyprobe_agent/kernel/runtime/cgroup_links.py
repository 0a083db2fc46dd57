"""Programs on the targets' cgroups, beside those of others.

A program on a cgroup runs for the sockets of that cgroup and of all below it. With a program on a
cgroup, those on its ancestors run only if they were attached with BPF_F_ALLOW_MULTI
(compute_effective_progs(), kernel/bpf/cgroup.c). So a link of ours would stop a program above it
that was attached without that flag. One that comes later would never run for our cgroup. So all
ancestors are queried: before a link is made, after that, and at each `follow`. Where ours would
stop another's program it is not attached, or detached.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

from latencyprobe.process.os_errors import explained, is_gone, is_transient
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_agent.kernel import libbpf

log = logging.getLogger(__name__)

_Query = Callable[[str, int], libbpf.OnCgroup]


@dataclass(frozen=True, slots=True)
class CgroupProgram:
    """A loaded program and the kind of event that runs it: enum bpf_attach_type."""

    descriptor: int
    attach_type: int

    @property
    def number(self) -> int:
        """The kernel's id of the program."""
        return int(libbpf.program_info(self.descriptor).id)


@dataclass(frozen=True, slots=True)
class _Attached:
    """The links on one directory, with the directory's inode number, and its ancestors."""

    inode: int
    levels: tuple[str, ...]
    links: list[int] = field(default_factory=list)

    def close(self) -> None:
        for descriptor in self.links:
            os.close(descriptor)
        self.links.clear()


class CgroupLinks:
    """The links of some programs on cgroups. The owner closes it; the programs stay open.

    `refused`: directory to the reason why nothing is attached to it.
    """

    def __init__(self, programs: Sequence[CgroupProgram]) -> None:
        self._programs = tuple(programs)
        self._own = frozenset(program.number for program in programs)
        self._attached: dict[str, _Attached] = {}
        self._lines = RepeatedLines(log)
        self.refused: Mapping[str, str] = {}

    @property
    def attached(self) -> frozenset[str]:
        """The directories that have our programs."""
        return frozenset(self._attached)

    def follow(self, directories: Collection[str]) -> None:
        """Attach the programs to these directories of the v2 hierarchy, and to no other.

        A directory below another one has the programs already. One that does not exist is ignored.
        Attached directories are checked again, and refused ones are tried again. One that cannot be
        checked now keeps its programs.
        """
        wanted = topmost(directories)
        refused: dict[str, str] = {}
        query = cache(_programs_on)  # of the cgroups above many targets too
        for directory in sorted(wanted):
            try:
                if self._is_checked(directory, query):
                    continue
                self._attach(directory)
            except _ConflictError as conflict:
                refused[directory] = str(conflict)
                self._detach(directory)
            except OSError as error:
                if not is_gone(error):
                    refused[directory] = _explained(error)
                self._detach(directory)
        for directory in self._attached.keys() - wanted:
            self._detach(directory)
        self.refused = refused

    def close(self) -> None:
        """Detach everything. Idempotent."""
        for directory in list(self._attached):
            self._detach(directory)

    def _is_checked(self, directory: str, query: _Query) -> bool:
        """Return True if a directory has the programs; it may have been removed and made again.

        Raises _ConflictError as `_check` does, and OSError if the directory is gone.
        """
        before = self._attached.get(directory)
        if before is None:
            return False
        try:
            if before.inode != os.stat(directory).st_ino:
                return False
            self._check(before.levels, query)
        except OSError as error:
            if not is_transient(error):
                raise
            self._lines.note(
                "check", f"cannot check the programs on {directory}: {_explained(error)}"
            )
        return True

    def _attach(self, directory: str) -> None:
        """Attach all programs to a directory, unless that stops another's."""
        self._detach(directory)
        levels = tuple(_levels(directory))
        if len(levels) == 1:
            raise _ConflictError("it is the root of the hierarchy, which has all processes")
        self._check_all(levels)
        with _opened(directory) as descriptor:
            made = self._attached[directory] = _Attached(os.fstat(descriptor).st_ino, levels)
            for program in self._programs:
                made.links.append(
                    libbpf.create_link(program.descriptor, descriptor, program.attach_type)
                )
        self._check_all(levels)

    def _check_all(self, levels: Sequence[str]) -> None:
        """Raise _ConflictError as `_check` does, and for programs on cgroups that are not visible.

        Those have no flags here. Once ours are attached, such a program that is stopped by them
        cannot be seen.
        """
        seen = self._check(levels, _programs_on)
        for program in self._programs:
            effective = _programs_on(levels[0], program.attach_type, effective=True)
            hidden = set(effective.numbers) - self._own - seen
            if hidden:
                raise _ConflictError(f"program {min(hidden)} is on a cgroup that cannot be read")

    def _check(self, levels: Sequence[str], query: _Query) -> frozenset[int]:
        """Raise _ConflictError if a program of another does not run beside ours.

        Return all programs of others on these cgroups.
        """
        seen: set[int] = set()
        for program in self._programs:
            for level in levels:
                found = query(level, program.attach_type)
                others = set(found.numbers) - self._own
                if others and not found.is_shared:
                    place = "on it" if level == levels[0] else "above it"
                    raise _ConflictError(
                        f"program {min(others)} {place} was attached without BPF_F_ALLOW_MULTI"
                    )
                seen |= others
        return frozenset(seen)

    def _detach(self, directory: str) -> None:
        attached = self._attached.pop(directory, None)
        if attached is not None:
            attached.close()


class _ConflictError(Exception):
    """A program of another that ours must not stand beside. The message is the reason."""


def topmost(directories: Collection[str]) -> frozenset[str]:
    """Return the directories that are below none of the others."""
    found: set[str] = set()
    for directory in sorted(directories, key=len):
        if not any(above in found for above in _above(directory)):
            found.add(directory)
    return frozenset(found)


def _above(directory: str) -> Iterator[str]:
    while (parent := os.path.dirname(directory)) != directory:
        yield parent
        directory = parent


def _levels(directory: str) -> Iterator[str]:
    """Yield a directory and its ancestors, up to the mount of the hierarchy."""
    device = os.stat(directory).st_dev
    yield directory
    for above in _above(directory):
        if os.stat(above).st_dev != device:
            return
        yield above


def _programs_on(directory: str, attach_type: int, *, effective: bool = False) -> libbpf.OnCgroup:
    with _opened(directory) as descriptor:
        return libbpf.programs_on_cgroup(descriptor, attach_type, effective=effective)


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _explained(error: OSError) -> str:
    if isinstance(error, libbpf.KernelRefusedError):
        return error.answer
    return explained(error)
