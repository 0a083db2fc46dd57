"""The pods that one agent may report on: those of its states, and those that have ended since.

An agent names a pod by the UID in its cgroups' names. The operator knows it by that of the API.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from latencyprobe.domain.slots import slot_length_s
from latencyprobe_operator.desired_state import NO_STATE, DesiredNodeState, ProbeOnNode

# Per agent, shared by namespaces. A pod is in reports for a window after its end.
MOST_ENDED = 1024


class AskedPod(NamedTuple):
    """The pod's UID in the API, and its name."""

    uid: str
    name: str


FindPod = Callable[[str], AskedPod | None]
"""Returns the pod of this UID in an agent's report; None if it was not asked for."""


class AskedPods:
    """The pods that this operator has sent to one agent, over all its sessions.

    An *earlier* pod is one that an operator before this one has sent, and that has ended.
    `clock`: seconds of a monotonic clock.
    """

    __slots__ = ("_admitted", "_clock", "_ended", "_state")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._state = NO_STATE
        self._ended: dict[tuple[str, str], AskedPod] = {}
        self._admitted: dict[str, dict[str, AskedPod]] = {}

    def ask(self, state: DesiredNodeState) -> None:
        """Note a state that is about to be sent."""
        now = {probe.key.uid: _pods_of(probe) for probe in state}
        for probe in self._state:
            uid = probe.key.uid
            for pod_uid, pod in _pods_of(probe).items():
                if pod_uid not in now.get(uid, {}):
                    self._ended[uid, pod_uid] = pod
        namespaces = {probe.key.uid: probe.key.namespace for probe in state}
        for name in _surplus(self._ended, namespaces):
            del self._ended[name]
        self._state = state
        for gone in self._admitted.keys() - now.keys():
            del self._admitted[gone]
        for probe in state:
            # A pod stays as long as the slot in which it has ended. A report of that time comes
            # before the next interval ends, also if it is sent again.
            slot_s = slot_length_s(probe.window_s, probe.interval_s)
            probe.earlier.open(self._clock(), span_s=probe.window_s + slot_s + probe.interval_s)

    def finder(self, probe_uid: str) -> FindPod:
        """Return a function that finds the pods of one report: see `FindPod`.

        It indexes the pods once. An index that is kept would take 1 KiB of each agent.
        """
        probe = self._probe(probe_uid)
        now = _pods_of(probe) if probe else {}

        def find(pod_uid: str) -> AskedPod | None:
            if known := now.get(pod_uid) or self._ended.get((probe_uid, pod_uid)):
                return known
            if probe is None or not probe.earlier.is_open(self._clock()):
                return None
            return self._admitted.get(probe_uid, {}).get(pod_uid)

        return find

    def most(self, probe_uid: str) -> int | None:
        """Return the number of pods that a report may be on; None if it is not known.

        That is as long as there may be earlier pods, and if too many have ended to keep them all.
        """
        if self.may_have_earlier(probe_uid) or len(self._ended) >= MOST_ENDED:
            return None
        probe = self._probe(probe_uid)
        ended = sum(of_probe == probe_uid for of_probe, _ in self._ended)
        admitted = len(self._admitted.get(probe_uid, ()))
        return (len(_pods_of(probe)) if probe else 0) + ended + admitted

    def admit(self, probe_uid: str, pod_uid: str, name: str) -> AskedPod | None:
        """Take in an earlier pod; None if the agent may not report on it."""
        probe = self._probe(probe_uid)
        if probe is None or not probe.earlier.admits(pod_uid, name, at=self._clock()):
            return None
        admitted = self._admitted.setdefault(probe_uid, {})
        return admitted.setdefault(pod_uid, AskedPod(pod_uid, name))

    def may_have_earlier(self, probe_uid: str) -> bool:
        """Decide whether the agent may still have earlier pods, those that it may not report too.

        The status before listed some pods alone, and the name of an ended pod may be in use again.
        """
        probe = self._probe(probe_uid)
        return probe is not None and probe.earlier.is_open(self._clock())

    def _probe(self, probe_uid: str) -> ProbeOnNode | None:
        return next((probe for probe in self._state if probe.key.uid == probe_uid), None)


def _pods_of(probe: ProbeOnNode) -> dict[str, AskedPod]:
    """Return the pods of a probe by the UIDs in their cgroups' names."""
    pods = {each.pod_uid: AskedPod(each.api_uid, each.pod_name) for each in probe.waiting}
    for target in probe.targets:
        if target.pod_uid not in pods:
            pods[target.pod_uid] = AskedPod(target.api_uid, target.pod_name)
    return pods


def _surplus(
    ended: Collection[tuple[str, str]], namespaces: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield those of these pods, by their probes, that are beyond MOST_ENDED.

    First those of probes that are gone, then those of the namespace with the most; always the
    oldest. `ended`: the oldest first.
    """
    number = len(ended) - MOST_ENDED
    if number <= 0:
        return
    by_namespace: dict[str, deque[tuple[str, str]]] = defaultdict(deque)
    for name in ended:
        by_namespace[namespaces.get(name[0], "")].append(name)
    for _ in range(number):
        yield (by_namespace.get("") or max(by_namespace.values(), key=len)).popleft()
