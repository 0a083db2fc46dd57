"""The pods that one agent may report on: those of its states, and those that have ended since.

An agent names a pod by the UID in its cgroups' names. The operator knows it by that of the API.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from latencyprobe_operator.desired_state import DesiredNodeState
from latencyprobe_operator.earlier_pods import EarlierPods
from latencyprobe_operator.model import ContainerTarget, PodTarget

# Per agent, shared by namespaces. A pod is in reports for a window after its end.
MOST_ENDED = 1024

_Target = ContainerTarget | PodTarget


class AskedPod(NamedTuple):
    """The pod's UID in the API, and its name."""

    uid: str
    name: str


class AskedPods:
    """The pods that this operator has sent to one agent, over all its sessions.

    An *earlier* pod is one that an operator before this one has sent, and that has ended.
    `clock`: seconds of a monotonic clock.
    """

    __slots__ = ("_admitted", "_clock", "_earlier", "_ended", "_now")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now: Mapping[str, Mapping[str, _Target]] = {}
        self._ended: dict[tuple[str, str], AskedPod] = {}
        self._earlier: Mapping[str, EarlierPods] = {}
        self._admitted: dict[str, dict[str, AskedPod]] = {}

    def ask(self, state: DesiredNodeState) -> None:
        """Note a state that is about to be sent."""
        now: dict[str, dict[str, _Target]] = {}
        for probe in state:
            pods: dict[str, _Target] = {pod.pod_uid: pod for pod in probe.waiting}
            for container in probe.targets:
                pods.setdefault(container.pod_uid, container)
            now[probe.key.uid] = pods
        for probe_uid, pods_before in self._now.items():
            for pod_uid, target in pods_before.items():
                if pod_uid not in now.get(probe_uid, {}):
                    self._ended[probe_uid, pod_uid] = AskedPod(target.api_uid, target.pod_name)
        namespaces = {probe.key.uid: probe.key.namespace for probe in state}
        for name in _surplus(self._ended, namespaces):
            del self._ended[name]
        self._now = now
        self._earlier = {probe.key.uid: probe.earlier for probe in state}
        for gone in self._admitted.keys() - now.keys():
            del self._admitted[gone]
        for probe in state:
            # A pod stays for the window after the interval in which it has ended.
            probe.earlier.open(self._clock(), span_s=probe.window_s + probe.interval_s)

    def find(self, probe_uid: str, pod_uid: str) -> AskedPod | None:
        """Return the pod of this UID in an agent's report; None if it was not asked for."""
        if target := self._now.get(probe_uid, {}).get(pod_uid):
            return AskedPod(target.api_uid, target.pod_name)
        if known := self._ended.get((probe_uid, pod_uid)):
            return known
        earlier = self._earlier.get(probe_uid)
        if earlier is None or not earlier.is_open(self._clock()):
            return None
        return self._admitted.get(probe_uid, {}).get(pod_uid)

    def admit(self, probe_uid: str, pod_uid: str, name: str) -> AskedPod | None:
        """Take in an earlier pod; None if the agent may not report on it."""
        earlier = self._earlier.get(probe_uid)
        if earlier is None or not earlier.admits(pod_uid, name, at=self._clock()):
            return None
        admitted = self._admitted.setdefault(probe_uid, {})
        return admitted.setdefault(pod_uid, AskedPod(pod_uid, name))


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
