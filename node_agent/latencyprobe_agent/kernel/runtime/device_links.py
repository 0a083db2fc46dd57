"""Programs on network devices: those of the targets' namespaces, and the host's on packets' paths.

A link to a device is made inside its namespace, and takes 15 ms. The kernel lets no other device
change in that time: tcx_link_attach(), kernel/bpf/tcx.c, waits for RCU with the RTNL lock held. So
a thread of its own makes them, one after the other, and another hook serves until they all are
there. Other programs take these links over, by BPF_LINK_UPDATE, which takes microseconds and lets
other devices change. A link ends with its device, or with the process.

The programs of others on a device stay as they are: ours let each packet pass.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from latencyprobe.process.os_errors import explained
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import MAX_HOST_DEVICES
from latencyprobe_agent.kernel.hooks import (
    HOST_EGRESS,
    HOST_INGRESS,
    POD_EGRESS,
    POD_INGRESS,
    QUEUE_EGRESS,
)
from latencyprobe_agent.kernel.runtime.namespace_paths import find_path, inside
from latencyprobe_agent.kernel.runtime.network_devices import (
    Device,
    devices,
    devices_with_default_route,
    has_news,
    link_changes,
)

log = logging.getLogger(__name__)

_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH})
_EGRESS = frozenset({HOST_EGRESS, POD_EGRESS, QUEUE_EGRESS})
# More than that in one namespace are no target's, but a router's.
_MOST_DEVICES = 64


@dataclass(frozen=True, slots=True)
class _Place:
    """A program's place: the namespace, the device and the function."""

    netns: int
    ifindex: int
    function: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one round. `wanted`: the namespaces that it was for.

    `host_devices`: the host's devices on which arrivals are seen. `refused`: the reason why some
    device has no program; empty if all have theirs.
    """

    wanted: frozenset[int] = frozenset()
    host_devices: frozenset[int] = frozenset()
    refused: str = ""


class _RefusedError(Exception):
    """A device, or a namespace, that gets no program. The message is the reason."""


class DeviceLinks:
    """The links of some programs to devices. The owner ends it; the programs stay open.

    `host`: the inode number of the host's network namespace. `host_path`: a path to it; None for
    the agent's own namespace and that of PID 1.
    """

    def __init__(
        self, programs: Mapping[str, int], *, host: int, host_path: str | None = None
    ) -> None:
        self._programs = _copied(programs)
        self._successors: SimpleQueue[dict[str, int]] = SimpleQueue()
        self._host = host
        self._host_path = host_path
        self._links: dict[_Place, int] = {}
        self._changes: socket.socket | None = None
        self._thread = ThreadPoolExecutor(1, "latencyprobe-devices")
        self._wanted: Mapping[int, frozenset[str]] = {}
        self._round: Future[None] | None = None
        self._is_ending = False
        self.outcome = Outcome()

    @property
    def is_busy(self) -> bool:
        """True while a round is going on."""
        return self._round is not None and not self._round.done()

    @property
    def is_attached(self) -> bool:
        """True if the last round attached all programs that are wanted now."""
        outcome = self.outcome
        return outcome.wanted == self._wanted.keys() and not outcome.refused

    def replace_programs(self, programs: Mapping[str, int]) -> None:
        """Have the next round, see `follow`, put these programs in the places of those before.

        Programs without a successor are detached.
        """
        self._successors.put(_copied(programs))
        self.outcome = Outcome()

    def follow(self, wanted: Mapping[int, frozenset[str]]) -> None:
        """Begin to attach the programs for these namespaces, and to detach them from others.

        `outcome` has the result, some time later.
        """
        self._wanted = dict(wanted)
        if not self._is_ending:
            self._round = self._thread.submit(self._run)

    def check(self) -> None:
        """Begin another round if devices may have changed, or if the last one was refused."""
        if self.is_busy or self._is_ending:
            return
        if self.outcome.refused or self._changes is None or has_news(self._changes):
            self.follow(self._wanted)

    def end(self) -> Future[None]:
        """Begin to detach everything, and to free it. Idempotent."""
        if not self._is_ending:
            self._is_ending = True
            self._round = self._thread.submit(self._detach_all)
            self._thread.shutdown(wait=False)
        assert self._round is not None
        return self._round

    def _run(self) -> None:
        wanted = self._wanted
        if self._is_ending:
            return
        self._switch()
        try:
            devices_of_host = self._attach_all(wanted)
        except _RefusedError as refusal:
            self._publish(Outcome(frozenset(wanted), refused=str(refusal)))
        except OSError as error:
            self._publish(Outcome(frozenset(wanted), refused=explained(error)))
        else:
            self._publish(Outcome(frozenset(wanted), devices_of_host))

    def _switch(self) -> None:
        """Use the last of the next programs, if there are any."""
        while not self._successors.empty():
            before, self._programs = self._programs, self._successors.get()
            for place, link in list(self._links.items()):
                successor = self._programs.get(place.function)
                if successor is None or not _is_updated(link, successor):
                    os.close(self._links.pop(place))
            _close(before)

    def _publish(self, outcome: Outcome) -> None:
        if outcome.refused and outcome.refused != self.outcome.refused:
            log.warning("no programs on devices: %s", outcome.refused)
        self.outcome = outcome

    def _attach_all(self, wanted: Mapping[int, frozenset[str]]) -> frozenset[int]:
        """Attach what is missing and detach what is not wanted; return the host's devices.

        Raises _RefusedError and OSError.
        """
        self._forget_gone()
        places: set[_Place] = set()
        ends: dict[int, int] = {}  # of pairs: the host's end to the other
        for netns, cgroups in wanted.items():
            for device in self._attach_in_pod(netns, cgroups, places):
                if device.is_pair and device.is_across:
                    ends[device.lower] = device.index
        on_host = self._attach_on_host(ends, places) if wanted else frozenset()
        for place in self._links.keys() - places:
            os.close(self._links.pop(place))
        return on_host

    def _attach_in_pod(
        self, netns: int, cgroups: frozenset[str], places: set[_Place]
    ) -> tuple[Device, ...]:
        path = find_path(netns, cgroups)
        if path is None:
            raise _RefusedError(f"no process leads to network namespace {netns}")
        with inside(path, netns):
            found = devices()
            if len(found) > _MOST_DEVICES:
                raise _RefusedError(f"network namespace {netns} has {len(found)} devices")
            for device in found:
                self._attach(_Place(netns, device.index, POD_EGRESS), device, places)
                if device.receives_first:
                    self._attach(_Place(netns, device.index, POD_INGRESS), device, places)
        return found

    def _attach_on_host(self, ends: Mapping[int, int], places: set[_Place]) -> frozenset[int]:
        path = find_path(self._host, (), self._host_path)
        if path is None:
            raise _RefusedError("no path leads to the host's network namespace")
        with inside(path, self._host):
            if self._changes is None:
                self._changes = link_changes()
            found = devices()
            for device in found:
                if device.has_queue:
                    self._attach(_Place(self._host, device.index, QUEUE_EGRESS), device, places)
            first = tuple(_of_host(found, ends, devices_with_default_route()))
            if len(first) > MAX_HOST_DEVICES:
                raise _RefusedError(f"the host has {len(first)} devices")
            for device in first:
                self._attach(_Place(self._host, device.index, HOST_INGRESS), device, places)
                if ends.get(device.index) == device.lower and device.is_across:
                    self._attach(_Place(self._host, device.index, HOST_EGRESS), device, places)
        return frozenset(device.index for device in first)

    def _attach(self, place: _Place, device: Device, places: set[_Place]) -> None:
        """Attach a program, if it was loaded, to a device of the thread's namespace, once."""
        if self._is_ending:
            raise _RefusedError("the programs are being detached")
        if place.function not in self._programs:
            return
        if place not in self._links:
            is_egress = place.function in _EGRESS
            kind = libbpf.ATTACH_TYPE_TCX_EGRESS if is_egress else libbpf.ATTACH_TYPE_TCX_INGRESS
            program = self._programs[place.function]
            try:
                link = libbpf.create_device_link(program, device.index, kind, first=not is_egress)
            except libbpf.KernelRefusedError as error:
                if error.errno in _GONE:
                    return
                raise _RefusedError(f"device {device.name}: {error.answer}") from error
            self._links[place] = link
        places.add(place)

    def _forget_gone(self) -> None:
        """Close the links of devices that do not exist any more."""
        for place, link in list(self._links.items()):
            if libbpf.device_of_link(link) != place.ifindex:
                os.close(self._links.pop(place))

    def _detach_all(self) -> None:
        for link in self._links.values():
            os.close(link)
        self._links.clear()
        _close(self._programs)
        while not self._successors.empty():
            _close(self._successors.get())
        if self._changes is not None:
            self._changes.close()
        self.outcome = Outcome()


def _copied(programs: Mapping[str, int]) -> dict[str, int]:
    return {name: os.dup(program) for name, program in programs.items()}


def _close(programs: Mapping[str, int]) -> None:
    for program in programs.values():
        os.close(program)


def _is_updated(link: int, program: int) -> bool:
    """Replace the program of a link; return False if it has to be made again, or is gone."""
    try:
        libbpf.update_link(link, program)
    except libbpf.KernelRefusedError:
        return False
    return True


def _of_host(
    found: Iterable[Device], ends: Mapping[int, int], with_default_route: frozenset[str]
) -> Iterator[Device]:
    """Yield the devices by which packets come to the host from other nodes, and from targets.

    Pairs lead to pods, so other pods' devices have no program. But the device of the default route
    may be a pair, too: the node may be a container itself.
    """
    for device in found:
        if device.is_loopback or not device.receives_first:
            continue
        is_of_target = ends.get(device.index) == device.lower and device.is_across
        if not device.is_pair or is_of_target or device.name in with_default_route:
            yield device
