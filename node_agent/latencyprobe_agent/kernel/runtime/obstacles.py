"""The effects of obstacles on the coverage, and on targets: see `abi.Obstacle`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from latencyprobe.domain.coverage import MEASURED, CoverageState, StageCoverage
from latencyprobe.domain.stages import BY_NAME
from latencyprobe_agent.kernel.abi import Obstacle
from latencyprobe_agent.kernel.contract import LostPart


@dataclass(frozen=True, slots=True)
class _Effect:
    """The stages that an obstacle takes packets from, and the reason.

    `is_partial`: it is a fault of the stage that these packets are missing. Otherwise they have no
    such stage, as on every node. `counter`: one that this node cannot count.
    """

    stages: Collection[str]
    reason: str
    is_partial: bool = True
    counter: str = ""


_EFFECTS: Mapping[Obstacle, _Effect] = {
    Obstacle.OTHER_NETNS: _Effect(
        ("rx.host", "tx.host"),
        "absent for packets of a pod's device that leads to a network namespace that is not the "
        "node's",
        is_partial=False,
    ),
    Obstacle.TUN: _Effect(
        ("rx.host", "tx.host"),
        "absent for packets of a tun device in a pod",
        is_partial=False,
    ),
    Obstacle.XDP: _Effect(
        ("rx.host", "rx.total"),
        "packets are lost that an XDP program on a pod's device copied",
    ),
    Obstacle.UNKNOWN_DEVICE: _Effect(
        ("tx.host", "tx.qdisc", "tx.driver", "tx.total"),
        "packets are unmatched that left by a device of a kind that is not supported",
    ),
    Obstacle.NO_ARRIVAL: _Effect(
        ("rx.host", "rx.stack"),
        "packets that enter a pod without an event on its device (macvlan, bpf_redirect_peer) have "
        "no rx.host, and their path into the pod is in rx.stack",
        is_partial=False,
    ),
    Obstacle.NO_DEPARTURE: _Effect(
        ("tx.host", "tx.qdisc", "tx.driver", "tx.total"),
        "packets to another pod of the node are unmatched that no device of the node transmits "
        "(macvlan, bpf_redirect_peer)",
    ),
    Obstacle.UNSEEN_END: _Effect(
        ("tx.host", "tx.total"),
        "packets are unmatched that no device of the node transmits: a process of the node "
        "receives them (a kubelet that probes), or they are dropped",
        is_partial=False,
    ),
    Obstacle.DEFERRED_FREE: _Effect(
        ("tx.driver", "tx.total"),
        "packets that another CPU completes may wait in this stage until their sender's CPU frees "
        "them (Linux 6.19 and later)",
        is_partial=False,
    ),
    Obstacle.NO_QUOTA_ACCOUNT: _Effect(
        (),
        "requires the account of a quota's waits on each CPU, added in Linux 6.6 (with "
        "CONFIG_CFS_BANDWIDTH)",
        counter="waitedThrottledNs",
    ),
}


def mention(
    coverage: tuple[StageCoverage, ...], obstacles: Mapping[Obstacle, str]
) -> tuple[StageCoverage, ...]:
    """Return the coverage with the effects of these obstacles, each with its detail."""
    for obstacle, detail in obstacles.items():
        if obstacle in _EFFECTS:
            effect = _EFFECTS[obstacle]
            coverage = tuple(_affected(stage, effect, detail) for stage in coverage)
            coverage += _uncounted(effect, {stage.name for stage in coverage})
    return coverage


def lost_part(obstacle: Obstacle, detail: str) -> LostPart:
    """Return the part that targets lose by an obstacle of their own: it names the stages."""
    effect = _EFFECTS[obstacle]
    return LostPart(
        frozenset(BY_NAME[name].module for name in effect.stages),
        f"{_reason(effect, detail)}: they are missing from {', '.join(effect.stages)}",
    )


def _uncounted(effect: _Effect, known: Collection[str]) -> tuple[StageCoverage, ...]:
    """Return the coverage of the counter that is missing, unless it is known for another reason."""
    if not effect.counter or effect.counter in known:
        return ()
    return (StageCoverage(effect.counter, CoverageState.UNAVAILABLE, reason=effect.reason),)


def _affected(stage: StageCoverage, effect: _Effect, detail: str) -> StageCoverage:
    if stage.name not in effect.stages or stage.state not in MEASURED:
        return stage
    state = CoverageState.PARTIAL if effect.is_partial else stage.state
    return stage.also(_reason(effect, detail), state)


def _reason(effect: _Effect, detail: str) -> str:
    return f"{effect.reason} ({detail})" if detail else effect.reason
