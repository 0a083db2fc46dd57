"""Measures a situation from both ends at once, by an agent as `latencyprobe run` has one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from latencyprobe.domain.measurement import NOTHING, NOTHING_OF_THE_NODE
from latencyprobe.domain.report import report_on
from latencyprobe.domain.verdict import Verdict
from latencyprobe.local import agent_process
from latencyprobe.local.agent_process import AgentProcess, private_agent
from latencyprobe.local.session import CgroupTarget, MeasurementRequest, Session
from tests.live.pods import Traffic, cgroup
from tests.live.situations import unpaused_agent
from tests.live.situations.recording import Evidence
from tests.live.situations.scenes import Scene, start_in
from tests.live.situations.situation import End, Facts, Situation
from tests.live.sockets import tcp_figures

ATTEMPTS = 5
# Isolated, as `agent_process` has it.
AGENT_COMMAND = (sys.executable, "-I", unpaused_agent.__file__, "agent")
_NAMES = ("RetransSegs", "TCPTimeouts", "TCPSynRetrans", "DelayedACKs", "ListenOverflows")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was true, and what was measured from each end."""

    situation: Situation
    facts: Facts
    evidence: Mapping[End, Evidence]

    def verdict(self, end: End) -> Verdict:
        """The verdict from this end."""
        return judge(self.evidence[end])

    @property
    def truth(self) -> str:
        return self.situation.truth.format(**self.facts)


class Observed(Protocol):
    """Has a situation happen, unless it was seen to, for the first time or another one."""

    def __call__(self, name: str, time: int = 1) -> Awaitable[Outcome]:
        """Return what was seen."""


class NotMadeError(AssertionError):
    """A machine on which a situation did not happen. `facts` tells what happened instead."""

    def __init__(self, situation: Situation, facts: Facts) -> None:
        self.facts = facts
        super().__init__(f"{situation.name} did not happen in {ATTEMPTS} attempts; last: {facts}")


def judge(evidence: Evidence) -> Verdict:
    """The verdict of the report on this evidence."""
    return report_on(evidence.measurement, evidence.modules, evidence.node).verdict


async def observe(situation: Situation, object_cache: Path) -> Outcome:
    """Have it happen, measured; again if it did not happen."""
    facts: Facts = {}
    for _ in range(ATTEMPTS):
        outcome = await _observe_once(situation, object_cache)
        facts = outcome.facts
        if situation.was_made(facts):
            return outcome
    raise NotMadeError(situation, facts)


async def _observe_once(situation: Situation, object_cache: Path) -> Outcome:
    async with _staged(situation, object_cache) as stage:
        await stage.play()
        return Outcome(situation, stage.facts, stage.evidence())


async def observe_windows(
    situation: Situation, count: int, object_cache: Path
) -> AsyncIterator[Outcome]:
    """The windows of traffic that goes on; each is measured by itself."""
    async with _staged(situation, object_cache) as stage:
        for _ in range(count):
            stage.begin_window()
            await stage.play()
            yield Outcome(situation, stage.facts, stage.evidence())


class _Stage:
    """A situation that is attached to, and waits for its beginning."""

    def __init__(
        self,
        situation: Situation,
        scene: Scene,
        programs: Mapping[End, Traffic],
        agent: AgentProcess,
        session: Session,
    ) -> None:
        self._situation = situation
        self._scene = scene
        self._programs = programs
        self._agent = agent
        self._session = session
        self.facts: Facts = {}

    async def play(self) -> None:
        """Let the client begin; returns when it has seen enough and all of it is measured."""
        self.facts = await asyncio.to_thread(self._let_happen)
        await self._agent.while_alive(self._session.seen_until_now)

    def _let_happen(self) -> Facts:
        pods = {End.CLIENT: self._scene.client, End.SERVER: self._scene.server}
        before = {end: tcp_figures(pod.namespace) for end, pod in pods.items()}
        accounts = {end: _account_of(self._programs[end]) for end in (End.CLIENT, End.SERVER)}
        after = {end: tcp_figures(pod.namespace) for end, pod in pods.items()}
        grown = {
            f"{end}_tcp": {name: after[end][name] - before[end][name] for name in _NAMES}
            for end in End
        }
        witnesses = {name: witness() for name, witness in self._scene.witnesses.items()}
        return {**{str(end): each for end, each in accounts.items()}, **grown, **witnesses}

    def begin_window(self) -> None:
        """Forget what was measured so far."""
        for seen in self._session._targets.values():
            seen.measurement = NOTHING
        self._session._node_measurement = NOTHING_OF_THE_NODE

    def evidence(self) -> Mapping[End, Evidence]:
        """What the verdicts rest on."""
        seen = self._session._targets.values()
        return {
            end: Evidence(
                self._session._node.kernel,
                tuple(self._situation.modules),
                each.measurement,
                self._session._node_measurement,
            )
            for end, each in zip(End, seen, strict=True)
        }


def _account_of(program: Traffic) -> Mapping[str, float]:
    program.go()
    return program.account()


@asynccontextmanager
async def _staged(situation: Situation, object_cache: Path) -> AsyncIterator[_Stage]:
    async with AsyncExitStack() as stack:
        scene = stack.enter_context(situation.scene())
        programs = _started(situation, scene, stack.enter_context(ExitStack()))
        options = ["--object-cache", str(object_cache)]
        if scene.host is not None:
            options += ["--host-netns", str(scene.host.path)]
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(agent_process, "AGENT_COMMAND", (*AGENT_COMMAND, *options))
        agent = await stack.enter_async_context(private_agent())
        channel = await stack.enter_async_context(agent.channel())
        pods = {End.CLIENT: scene.client, End.SERVER: scene.server}
        targets = tuple(CgroupTarget(end, str(pods[end].cgroup)) for end in End)
        session = Session(channel, MeasurementRequest(targets, situation.modules))
        await agent.while_alive(session.attach)
        assert not session.problems, session.problems
        watching = asyncio.create_task(session.watch(lambda: None))
        try:
            yield _Stage(situation, scene, programs, agent, session)
        finally:
            watching.cancel()
            await asyncio.wait({watching})


def _started(situation: Situation, scene: Scene, stack: ExitStack) -> Mapping[End, Traffic]:
    """The programs, each in its pod or cgroup, that wait for a word to begin."""
    for number, program in enumerate(situation.beside):
        name = f"{scene.server.cgroup.name}-beside{number}"
        elsewhere = stack.enter_context(cgroup(name))
        pod = type(scene.server)(scene.server.namespace, elsewhere, "", "")
        stack.callback(start_in(pod, program.module, program.role, dict(program.options)).stop)
    programs = {}
    for end, program in ((End.SERVER, situation.server), (End.CLIENT, situation.client)):
        pod = scene.server if end is End.SERVER else scene.client
        options = dict(program.options)
        if "path" not in options:
            options["address"] = scene.server.address
        joins = scene.joins if end is End.SERVER else scene.client_joins
        programs[end] = start_in(
            pod, program.module, program.role, options, joins=joins, is_prompt=situation.is_prompt
        )
        stack.callback(programs[end].stop)
    return programs
