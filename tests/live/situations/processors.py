"""Situations of CPUs: the reader could run, and has none."""

from __future__ import annotations

from dataclasses import replace

from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from tests.live.situations.answers import Cause, answer
from tests.live.situations.scenes import back_to_back, with_quota
from tests.live.situations.situation import SERVERS, Program, Situation, client, server, situation

CPU = 1
BUSY = 6
WITH_SCHED = (*DEFAULT_MODULES, Module.SCHED)
WAITS = "requests p50 {client[p50_ms]:.1f} ms, p99 {client[p99_ms]:.1f} ms; "


@situation
def cpu_quota() -> Situation:
    """The server's cgroup has a fifth of a CPU, and wants more. kubernetes#67577, #70585."""
    return Situation(
        scene=with_quota(20),
        is_prompt=False,
        server=server("answer", burn=3),
        client=client("ask", connections=3, seconds=6),
        was_made=lambda facts: facts["cpu"]["throttled"] >= 10 and facts["client"]["p99_ms"] > 40,
        truth=WAITS + "{cpu[throttled]:.0f} of {cpu[periods]:.0f} periods throttled",
        from_client=answer(Cause.PEER),
        from_server=answer(
            Cause.CPU_THROTTLED, half=[Cause.CPU_CONTENTION, Cause.SLOW_READER, Cause.APPLICATION]
        ),
    )


def _hog() -> Situation:
    return Situation(
        scene=back_to_back,
        is_prompt=False,
        server=server("answer", cpu=CPU, burn=1),
        beside=(Program(SERVERS, "burn", {"cpu": CPU, "processes": BUSY}),),
        client=client("ask", connections=4, gap=10, seconds=6),
        was_made=lambda facts: facts["client"]["p99_ms"] > 8,
        truth=WAITS + f"{BUSY} processes of another cgroup keep the server's CPU busy",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.CPU_CONTENTION, half=[Cause.NOISY_NEIGHBOUR], says="sched"),
    )


@situation
def hog_of_another_cgroup() -> Situation:
    """A neighbour has the reader's CPU; without the module sched it has no name."""
    return _hog()


@situation
def hog_of_another_cgroup_with_sched() -> Situation:
    """A neighbour has the reader's CPU, and the module sched sees who it is."""
    named = answer(Cause.NOISY_NEIGHBOUR, half=[Cause.CPU_CONTENTION])
    return replace(_hog(), modules=WITH_SCHED, from_server=named)


def _own_threads() -> Situation:
    return Situation(
        scene=back_to_back,
        is_prompt=False,
        server=server("answer_among_busy_threads", cpu=CPU, processes=BUSY, burn=1),
        client=client("ask", connections=4, gap=10, seconds=6),
        was_made=lambda facts: facts["client"]["p99_ms"] > 8,
        truth=WAITS + f"{BUSY} tasks of its own pod keep the server's CPU busy",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.CPU_CONTENTION, half=[Cause.SELF_CONTENTION], says="sched"),
    )


@situation
def own_threads_too_many() -> Situation:
    """The pod's own tasks have the reader's CPU; without the module sched they have no name."""
    return _own_threads()


@situation
def own_threads_too_many_with_sched() -> Situation:
    """The pod's own tasks have the reader's CPU, and the module sched sees that."""
    named = answer(Cause.SELF_CONTENTION, half=[Cause.CPU_CONTENTION])
    return replace(_own_threads(), modules=WITH_SCHED, from_server=named)
