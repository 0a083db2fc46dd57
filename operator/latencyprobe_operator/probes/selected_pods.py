"""The pods of one probe: followed in the API server, and kept in the desired states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

from latencyprobe_operator.api.conditions import ReadyReason
from latencyprobe_operator.api.spec import ProbeKey, ProbeSpec
from latencyprobe_operator.desired_state import ChoosePods, DesiredStates, PlacedPod
from latencyprobe_operator.kube.pods import PodsChange, PodSet, PodsListener
from latencyprobe_operator.kube.selector import LabelSelector
from latencyprobe_operator.probes.facts import Problem

Subscribe = Callable[[str, LabelSelector, PodsListener], PodSet]
"""As `PodWatches.subscribe`: the namespace, the selector and the listener."""
Unsubscribe = Callable[[PodSet, PodsListener], None]
"""As `PodWatches.unsubscribe`."""


class SelectedPods:
    """The pods that one probe selects, while it measures.

    A probe *joins* the desired states when its pods are known, in place of its pods before.
    """

    def __init__(
        self,
        key: ProbeKey,
        *,
        desired: DesiredStates,
        subscribe: Subscribe,
        unsubscribe: Unsubscribe,
        touch: Callable[[set[str]], None],
        on_change: Callable[[], None],
        choose: ChoosePods,
        reported: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        """Follow no pods yet. `touch`: the desired states of these nodes have changed.

        `reported`: the names of the pods in the status of an earlier operator, by their nodes.
        """
        self._key = key
        self._desired = desired
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self._touch = touch
        self._on_change = on_change
        self._choose = choose
        self._reported = reported
        self._spec: ProbeSpec | None = None
        self._pods: PodSet | None = None
        self._joined = False

    @property
    def followed(self) -> bool:
        """Return whether the probe follows its pods."""
        return self._pods is not None

    @property
    def known(self) -> bool:
        """Return whether the desired states hold this probe's pods, if it has any.

        The first refusals may be those of an API server that starts.
        """
        if self._pods is None or self._joined:
            return True
        return self._pods.refusal is not None and self._pods.refusal.lasting

    @property
    def matched(self) -> int:
        """Count the pods that the selector matches and that have not ended."""
        return sum(not pod.ended for pod in self._pods.pods.values()) if self._pods else 0

    @property
    def placed(self) -> Mapping[str, PlacedPod]:
        """Return the pods that have something to measure, by UID."""
        return self._desired.pods_of(self._key.uid)

    @property
    def left(self) -> frozenset[str]:
        """Return the nodes without pods whose agents still report on the window."""
        return self._desired.left_by(self._key.uid)

    def release(self, nodes: Iterable[str]) -> None:
        """Ask these nodes, which the pods have left, for nothing more."""
        for node in nodes:
            self._touch(self._desired.release(self._key.uid, node))

    def problem(self) -> Problem | None:
        """Return the reason why the pods are not known; None if they are."""
        if not self._pods:
            return None
        if refusal := self._pods.refusal:
            if refusal.invalid:
                return Problem(ReadyReason.INVALID_SELECTOR, refusal.message)
            return Problem(ReadyReason.PODS_UNAVAILABLE, refusal.message)
        if not self._pods.listed:
            return Problem(ReadyReason.LISTING_PODS, "the API server has not listed the pods yet")
        return None

    def follow(self, spec: ProbeSpec) -> None:
        """Follow the pods of this spec, in place of the one before."""
        self._spec = spec
        namespace, selector = self._key.namespace, spec.selector
        if self._pods and (self._pods.namespace, self._pods.selector) == (namespace, selector):
            self._join()
            return
        self.pause()
        self._pods = self._subscribe(namespace, selector, self._take)
        self._take(PodsChange())

    def leave(self) -> None:
        """Take the probe out of the desired states: its agents are to detach."""
        self.pause()
        self._touch(self._desired.remove_probe(self._key.uid))

    def pause(self) -> None:
        """Stop following the pods, and leave the desired states as they are."""
        if self._pods:
            self._unsubscribe(self._pods, self._take)
        self._pods, self._joined = None, False

    def _take(self, change: PodsChange) -> None:
        if not self._pods:
            return
        if self._pods.refusal:
            self._joined = False
            self._touch(self._desired.remove_probe(self._key.uid))
        elif self._pods.listed and not self._joined:
            self._join()
        elif self._joined:
            self._update(change)
        self._on_change()

    def _join(self) -> None:
        if not self._pods or not self._spec or not self._pods.listed:
            return
        self._joined = True
        pods, reported = self._pods.pods.values(), self._reported
        self._reported = {}
        self._touch(
            self._desired.set_probe(
                self._spec, pods, self._choose, earlier=reported, exists=self._has_pod
            )
        )

    def _has_pod(self, node: str, pod_uid: str, name: str) -> bool:
        """Decide whether the API server has such a pod, which may have ended."""
        pod = self._pods.pods.get(pod_uid) if self._pods else None
        return pod is not None and (pod.node, pod.name) == (node, name)

    def _update(self, change: PodsChange) -> None:
        touched: set[str] = set()
        for pod in change.changed:
            touched |= self._desired.set_pod(self._key.uid, pod)
        for pod_uid in change.removed:
            touched |= self._desired.remove_pod(self._key.uid, pod_uid)
        self._touch(touched)
