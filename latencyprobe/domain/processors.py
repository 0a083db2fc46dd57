"""Waiting for a CPU: the time that a thread waits whenever it can run, and its cause.

Module sched names the cgroup that runs instead. Without it there are the kernel's own accounts of
the target's cgroup and threads: a quota, the hypervisor, or a neighbour without a name.

Less than a cause takes is *noted* in the evidence, if it is no noise: from 1 % on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.cgroups import cgroup_text
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.evidence import EvidenceLine, of_count, of_percentile, of_share, of_time
from latencyprobe.domain.measurement import Measurement, NodeMeasurement, StageMeasurement
from latencyprobe.domain.stages import CPU_PRESSURE, waits_for_cgroups

# By module sched: the time in which a thread could run and did not, by who ran.
_WAITED: Mapping[str, Bottleneck] = {
    "waitedThrottledNs": Bottleneck.CPU_THROTTLED,
    "waitedForOwnNs": Bottleneck.SELF_CONTENTION,
    "waitedForOthersNs": Bottleneck.NOISY_NEIGHBOUR,
}
# A quota that stops fewer periods, or a hypervisor that takes less, explains no late thread.
_LEAST_THROTTLED = 0.05
_LEAST_STOLEN = 0.10
# By module sched, a wait whose cause is known for less than this part has no name.
_LEAST_NAMED = 0.10
# Of periods, of the node's CPU time, of all waiting: less of it is noise.
_LEAST_NOTED = 0.01
_LEAST_NOTED_PRESSURE_NS = 100_000_000
# The beginning, or the end, of each line that may be noted.
_OF_QUOTA = "the CPU limit stopped it in "
_OF_STEAL = "(steal)"
_OF_PRESSURE = f"({CPU_PRESSURE})"


@dataclass(frozen=True, slots=True)
class CPUDelay:
    """The mean time that a thread which could run waited for a CPU, and the cause.

    `culprit`: the cgroup that ran instead, where it is known. `share`: the part of its CPU time
    that a thread waits at least, also while it seems to run.
    """

    cause: Bottleneck
    mean_ns: int
    figures: tuple[str, ...] = ()
    culprit: str = ""
    share: float = 0.0

    def part_of(self, waits: int, waiting_ns: int) -> int:
        """Return the part of so many waits, together so long, that was waiting for a CPU."""
        return min(waiting_ns, waits * self.mean_ns)

    def part_of_each(self, waits: StageMeasurement, waiting_ns: int) -> int:
        """Return the same of waits whose times are known: each has at most its own time of it."""
        of_all_ns = round(waits.histogram.sum_up_to(self.mean_ns) / waits.sampling_ratio)
        return min(waiting_ns, of_all_ns)

    def part_of_answers(self, answers: StageMeasurement, waiting_ns: int) -> int:
        """Return the same of answers, in which threads seem to run while they wait."""
        seeming_ns = min(waiting_ns, round(self.share * waiting_ns))
        return max(self.part_of_each(answers, waiting_ns), seeming_ns)


NO_DELAY = CPUDelay(Bottleneck.CPU_CONTENTION, 0)


def cpu_delay(measurement: Measurement, node: NodeMeasurement) -> CPUDelay:
    """Return how long the target's threads waited for a CPU; by the best account that there is."""
    delay = _by_switches(measurement) or _by_quota(measurement) or _by_readers(measurement)
    if delay.cause is Bottleneck.CPU_CONTENTION and (stolen := _stolen(node)) >= _LEAST_STOLEN:
        figures = (*delay.figures, _steal_figure(stolen))
        return CPUDelay(Bottleneck.NODE_STEAL, delay.mean_ns, figures, share=stolen)
    return delay


def noted(
    measurement: Measurement, node: NodeMeasurement, waiting_ns: int, known: Collection[str]
) -> Iterator[EvidenceLine]:
    """Yield the accounts of the CPU that are no noise beside this waiting, and not known yet."""
    periods, throttled, _ = _quota(measurement)
    if throttled and throttled >= _LEAST_NOTED * periods:
        yield from (line for line in _quota_figures(measurement) if line not in known)
    stolen = _stolen(node)
    if stolen >= _LEAST_NOTED and (line := _steal_figure(stolen)) not in known:
        yield line
    pressure_ns = measurement.counters.get(CPU_PRESSURE, 0)
    if pressure_ns >= max(_LEAST_NOTED_PRESSURE_NS, _LEAST_NOTED * waiting_ns):
        text = f"some thread of its cgroup waited for a CPU for {format_ns(pressure_ns)}"
        yield of_time(pressure_ns, f"{text} {_OF_PRESSURE}")


def is_noted(line: str) -> bool:
    """Return True for a line as `noted` yields it, also if it supports a verdict."""
    return line.startswith(_OF_QUOTA) or line.endswith((_OF_STEAL, _OF_PRESSURE))


def _by_switches(measurement: Measurement) -> CPUDelay | None:
    """Return the delay by module sched, which sees each thread that waits; None without it."""
    switches = measurement.stage("sched.runqueue")
    runqueue = switches.histogram
    if not runqueue.count:
        return None
    p50_ns, p99_ns = (runqueue.percentile(percent) for percent in (50, 99))
    text = f"sched.runqueue of all its threads: p50 {format_ns(p50_ns)}, p99 {format_ns(p99_ns)}"
    figures = [of_percentile(p99_ns, text)]
    waited = {name: measurement.counters.get(name, 0) for name in _WAITED}
    most = max(waited, key=lambda name: waited[name])
    if waited[most] < max(_LEAST_NAMED * runqueue.sum_ns / switches.sampling_ratio, 1):
        quota = _by_quota(measurement)
        cause = Bottleneck.CPU_CONTENTION if quota is None else quota.cause
        of_quota = () if quota is None else quota.figures
        return CPUDelay(cause, runqueue.mean_ns, (*figures, *of_quota))
    text = ", ".join(f"{name} {format_ns(ns)}" for name, ns in waited.items() if ns)
    figures.append(of_time(waited[most], text))
    cause = _WAITED[most]
    if cause is Bottleneck.CPU_THROTTLED:
        figures += _quota_figures(measurement)
    culprit = _culprit(measurement) if cause is Bottleneck.NOISY_NEIGHBOUR else ""
    return CPUDelay(cause, runqueue.mean_ns, tuple(figures), culprit)


def _culprit(measurement: Measurement) -> str:
    """Return the cgroup for which the threads waited longest; empty if it is not known."""
    waited = waits_for_cgroups(measurement.counters)
    return cgroup_text(max(waited, key=lambda cgroup_id: waited[cgroup_id])) if waited else ""


def _by_quota(measurement: Measurement) -> CPUDelay | None:
    """Return the delay by the quota of the target's cgroup; None if it hardly stops it.

    That is the length of a stop times the share of periods with one. (A packet that comes during a
    stop waits for half of it on average. But packets gather in stops.)
    """
    periods, throttled, stopped_ns = _quota(measurement)
    share = throttled / periods if periods else 0.0
    if share < _LEAST_THROTTLED:
        return None
    mean_ns = max(round(share * stopped_ns / throttled), _by_readers(measurement).mean_ns)
    return CPUDelay(Bottleneck.CPU_THROTTLED, mean_ns, _quota_figures(measurement))


def _quota(measurement: Measurement) -> tuple[int, int, int]:
    names = ("cpuPeriods", "cpuThrottledPeriods", "cpuThrottledNs")
    periods, throttled, stopped_ns = (measurement.counters.get(name, 0) for name in names)
    return periods, throttled, stopped_ns


def _quota_figures(measurement: Measurement) -> tuple[EvidenceLine, ...]:
    periods, throttled, stopped_ns = _quota(measurement)
    if not throttled:
        return ()
    each = format_ns(round(stopped_ns / throttled))
    text = f"{_OF_QUOTA}{throttled:,} of {periods:,} periods, for {each} each"
    return (of_count(throttled, text),)


def _by_readers(measurement: Measurement) -> CPUDelay:
    """Return the delay of threads that read, by the scheduler's account of each."""
    waited_ns = measurement.counters.get("readerDelayNs", 0)
    reads = measurement.stage("rx.socket").histogram.count
    if not waited_ns or not reads:
        return NO_DELAY
    text = f"the threads that read waited {format_ns(waited_ns)} for a CPU (readerDelayNs)"
    figure = of_time(waited_ns, text)
    return CPUDelay(Bottleneck.CPU_CONTENTION, round(waited_ns / reads), (figure,))


def _steal_figure(stolen: float) -> EvidenceLine:
    return of_share(stolen, f"the hypervisor took {stolen:.0%} of the node's CPU time {_OF_STEAL}")


def _stolen(node: NodeMeasurement) -> float:
    """Return the part of the node's CPU time that the hypervisor took; 0 if it is not known."""
    whole_ns = node.counters.get("cpuTimeNs", 0)
    return node.counters.get("cpuStealNs", 0) / whole_ns if whole_ns else 0.0
