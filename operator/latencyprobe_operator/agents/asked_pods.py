"""The pods that one agent may report on: those of its states, and those that have ended since.

An agent names a pod by the UID in its cgroups' names. The operator knows it by that of the API.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from latencyprobe_operator.desired_state import DesiredNodeState
from latencyprobe_operator.dns_names import is_subdomain
from latencyprobe_operator.model import ContainerTarget

# Per agent. A pod is in reports for a window after its end.
MOST_ENDED = 1024
_LONGEST_UID = 128


class AskedPod(NamedTuple):
    """The pod's UID in the API, and its name."""

    uid: str
    name: str


class AskedPods:
    """The pods that this operator has sent to one agent, over all its sessions.

    A *stranger* is a pod that an operator before this one has sent, and that has ended.
    """

    def __init__(self) -> None:
        self._now: Mapping[str, Mapping[str, ContainerTarget]] = {}
        self._ended: dict[tuple[str, str], AskedPod] = {}
        self._strangers: dict[str, dict[str, AskedPod]] = {}
        self._most_strangers: Mapping[str, int] = {}

    def ask(self, state: DesiredNodeState) -> None:
        """Note a state that is about to be sent."""
        now: dict[str, dict[str, ContainerTarget]] = {}
        for probe in state:
            pods = now[probe.key.uid] = {}
            for target in probe.targets:
                pods.setdefault(target.pod_uid, target)
        for probe_uid, pods_before in self._now.items():
            for pod_uid, target in pods_before.items():
                if pod_uid not in now.get(probe_uid, {}):
                    self._ended[probe_uid, pod_uid] = AskedPod(target.api_uid, target.pod_name)
        while len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        self._now = now
        self._most_strangers = {probe.key.uid: probe.max_pods for probe in state}
        for gone in self._strangers.keys() - now.keys():
            del self._strangers[gone]

    def find(self, probe_uid: str, pod_uid: str) -> AskedPod | None:
        """Return the pod of this UID in an agent's report; None if it was not asked for."""
        if target := self._now.get(probe_uid, {}).get(pod_uid):
            return AskedPod(target.api_uid, target.pod_name)
        known = self._ended.get((probe_uid, pod_uid))
        return known or self._strangers.get(probe_uid, {}).get(pod_uid)

    def admit(self, probe_uid: str, pod_uid: str, name: str) -> AskedPod | None:
        """Take in a stranger, in place of the oldest one if there are as many as may be.

        Returns None if its name is no pod's.
        """
        most = self._most_strangers.get(probe_uid, 0)
        if not most or not is_subdomain(name) or not 0 < len(pod_uid) <= _LONGEST_UID:
            return None
        if not pod_uid.isprintable():
            return None
        strangers = self._strangers.setdefault(probe_uid, {})
        if len(strangers) >= most:
            del strangers[next(iter(strangers))]
        strangers[pod_uid] = stranger = AskedPod(pod_uid, name)
        return stranger
