"""One LatencyProbe's life in the operator: its spec, its pods, its figures, and its status.

Spec and pods flow down into the desired states; reports flow up into the summaries. One task
builds the status from them and writes it: no other part waits for the API server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from latencyprobe.process import clocks
from latencyprobe_operator.api.spec import ProbeSpec, probe_key
from latencyprobe_operator.api.status_fields import Phase
from latencyprobe_operator.api.timestamps import timestamp
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.kube.directory import NO_PODS, PodDirectory
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.observed_state import AgentView, ReportedProbe
from latencyprobe_operator.probes.announcer import Announcer, EventWriter
from latencyprobe_operator.probes.current_spec import CurrentSpec, start_time_of
from latencyprobe_operator.probes.document import Document
from latencyprobe_operator.probes.draft import Draft, draft_without_pods
from latencyprobe_operator.probes.facts import ProbeFacts
from latencyprobe_operator.probes.gathering import FactsGatherer
from latencyprobe_operator.probes.intake import ReportIntake
from latencyprobe_operator.probes.last_figures import LastFigures
from latencyprobe_operator.probes.left_nodes import pods_of_rows
from latencyprobe_operator.probes.naming import Naming
from latencyprobe_operator.probes.objectives import exceeded_in
from latencyprobe_operator.probes.schedule import StatusSchedule, pause_s
from latencyprobe_operator.probes.selected_pods import SelectedPods, Subscribe, Unsubscribe
from latencyprobe_operator.probes.snapshot import snapshot_of
from latencyprobe_operator.probes.status import build, outline
from latencyprobe_operator.probes.turns import NamespaceTurns
from latencyprobe_operator.probes.worst_pods import WantInFull, WorstPods
from latencyprobe_operator.probes.writer import PatchStatus, StatusWriter


class Probe:
    """One LatencyProbe. `run` is its task; `update` and `take_report` feed it.

    Large, because its parts know nothing of each other: each event goes to several of them in an
    order that is decided here.
    """

    def __init__(
        self,
        body: Mapping[str, Any],
        *,
        desired: DesiredStates,
        metrics: OperatorMetrics,
        subscribe: Subscribe,
        unsubscribe: Unsubscribe,
        touch: Callable[[set[str]], None],
        agent: Callable[[str], AgentView],
        want_in_full: WantInFull,
        patch_status: PatchStatus,
        building: NamespaceTurns | None = None,
        wall_clock: Callable[[], float] = time.time,
        steady_clock: Callable[[], float] | None = None,
        min_interval_s: float = 0.0,
        node_figures: bool = False,
        events: EventWriter | None = None,
        directory: PodDirectory = NO_PODS,
        waits_for_agents: bool = False,
        lease_s: float | None = None,
    ) -> None:
        """Follow the pods of this object at once.

        `touch`: the desired states of these nodes have changed. `agent` returns the view of the
        agent of a node. `node_figures`: it gets figures of whole nodes, and names of pods of
        other namespaces. `events`: without it there are no Events. `directory`: for names.
        `waits_for_agents`: until `expect_reports`. `lease_s`: see `measured_time.longest_gap_s`.
        """
        previous: Document = dict(body.get("status") or {})
        self.key = probe_key(body)
        self.stopped = asyncio.Event()
        self._wall_clock = wall_clock
        # Setting the wall clock neither ends nor stretches spec.duration.
        self._steady_clock = steady_clock or clocks.steady_clock()
        self._is_frozen = False
        self._poked = asyncio.Event()
        self._has_news = False
        """Something else than a report has happened since the last check."""
        self._building = building or NamespaceTurns()
        self._current = CurrentSpec(
            self.key,
            start_time_of(body, self._steady_clock(), lease_s=lease_s),
            min_interval_s=min_interval_s,
            node_figures=node_figures,
        )
        self._idle_phase: Phase | None = None
        self._schedule = StatusSchedule()
        self._last_check = -math.inf
        rows = previous.get("pods") or ()
        self._worst = WorstPods(self.key.uid, desired=desired, want_in_full=want_in_full, rows=rows)
        self._intake = ReportIntake(
            previous=previous,
            node_figures=node_figures,
            agent=agent,
            choose=self._worst.choice,
            measured_s=lambda: self._current.passed_s(self._steady_clock()),
        )
        self._figures = LastFigures()
        self._shown = metrics.figures
        self._pods = SelectedPods(
            self.key,
            desired=desired,
            subscribe=subscribe,
            unsubscribe=unsubscribe,
            touch=touch,
            on_change=self.poke,
            choose=self._worst.choice,
            reported=pods_of_rows(rows),
        )
        self._gatherer = FactsGatherer(
            self.key,
            pods=self._pods,
            intake=self._intake,
            worst=self._worst,
            agent=agent,
            naming=Naming(directory, self.key.namespace, sees_others=node_figures),
            exceeded=exceeded_in(previous),
        )
        self._announcer = Announcer(self.key, previous, events, wall_clock=wall_clock)
        self._writer = StatusWriter(self.key, body, patch_status=patch_status, metrics=metrics)
        self.update(body)
        stands = self._writer.describes(self._current.generation)
        if stands and self._current.spec and not self._idle_phase:
            interval_s = None if waits_for_agents else self._current.interval_s
            self._schedule.grant_grace(_now(), interval_s)

    @property
    def phase(self) -> str:
        """Return the phase that was written last."""
        return self._writer.phase

    @property
    def status(self) -> Document:
        """Return the status as it stands in the API server."""
        return self._writer.previous

    @property
    def pods_known(self) -> bool:
        """Return whether the desired states hold this probe's pods, if it has any."""
        return self._pods.known

    # ------------------------------------------------------------------ what comes in

    def update(self, body: Mapping[str, Any]) -> None:
        """Take in the object as it is now. Only a new generation, hence a new spec, counts."""
        self._writer.see(body)
        before = self._current.spec
        if self._current.read(body):
            if spec := self._current.spec:
                self._adopt(spec, before)
            self._decide()
            self.poke()

    def refuse(self, message: str | None) -> None:
        """Set the reason why the administrator's limits exclude this probe; None: they do not."""
        if self._current.refuse(message):
            if spec := self._current.spec:
                self._adopt(spec, None)
            self._decide()
            self.poke()

    def _adopt(self, spec: ProbeSpec, before: ProbeSpec | None) -> None:
        self._worst.max_pods = spec.max_pods
        self._intake.adopt(spec, before, at=_now())

    def take_report(self, node: str, report: ReportedProbe) -> None:
        """Take in an agent's report."""
        spec = self._current.spec
        if not self._pods.followed or not spec:
            return
        now, wall = _now(), self._wall_clock()
        is_whole = self._intake.take(node, report, self._pods.placed, spec, at=now, wall=wall)
        if is_whole and self._schedule.take_report(node, now):
            self._poked.set()

    def expect_reports(self) -> None:
        """Note that agents are connected to from now on: so long they have to report."""
        if self._schedule.in_grace(_now()):
            self._schedule.grant_grace(_now(), self._current.interval_s)
            self.poke()

    def poke(self) -> None:
        """Check the status soon: the views of agents may have changed."""
        self._has_news = True
        self._poked.set()

    def leave(self) -> None:
        """Take the probe out of the desired states: its agents are to detach."""
        self._shown.forget(self.key.uid)
        self._pods.leave()
        self.stopped.set()

    def pause(self) -> None:
        """Stop following the pods, and leave the agents as they are: the operator ends."""
        self._shown.forget(self.key.uid)
        self._pods.pause()
        self.stopped.set()

    def freeze(self) -> None:
        """Show and write nothing more: the operator disconnects from the agents, and ends.

        The probe is not stopped: until the handlers know that the operator ends, they would take
        that for a deletion, and have the agents detach.
        """
        self._is_frozen = True

    @property
    def _is_over(self) -> bool:
        return self._is_frozen or self.stopped.is_set()

    def _decide(self) -> None:
        """Measure, or be idle: from the spec and the time."""
        spec, idle_phase = self._current.spec, self._current.idle_phase(self._steady_clock())
        self._idle_phase = idle_phase
        if idle_phase is None:
            self._figures = LastFigures()
        if spec is None or idle_phase:
            self._shown.forget(self.key.uid)
            self._pods.leave()
            self._intake.clear(at=_now())
            self._schedule.forget_reports()
        else:
            self._pods.follow(spec)

    # ------------------------------------------------------------------------- status

    async def run(self) -> None:
        """Keep the status up to date until cancelled."""
        while True:
            await self._wait()
            self._poked.clear()
            has_news, self._has_news = self._has_news, False
            if self._idle_phase is not self._current.idle_phase(self._steady_clock()):
                self._decide()
                has_news = True
            # A report brings no other news to a probe that runs than its figures.
            if has_news or self._writer.phase != Phase.RUNNING or self._is_due(_now()):
                await self._update_status()

    async def _wait(self) -> None:
        """Wait until figures are due, or something has happened."""
        try:
            async with asyncio.timeout_at(self._next_check()):
                await self._poked.wait()
        except TimeoutError:
            self._has_news = True
        pause = pause_s(
            _now(),
            self._writer.last_write,
            last_check=self._last_check,
            due=self._next_check(),
        )
        await asyncio.sleep(pause)

    def _next_check(self) -> float:
        return self._schedule.next_check(
            _now(),
            self._current.interval_s,
            idle=self._figures_stand,
            reported=not self._earlier_stands(_now()),
            remaining_s=None
            if self._idle_phase
            else self._current.remaining_s(self._steady_clock()),
        )

    @property
    def _figures_stand(self) -> bool:
        return self._idle_phase is not None or self._current.problem is not None

    def _is_due(self, now: float) -> bool:
        interval_s = self._current.interval_s
        return now >= self._schedule.figures_due(interval_s, idle=self._figures_stand)

    def _earlier_stands(self, now: float) -> bool:
        """Decide whether the status of an earlier operator stands: nodes are yet to report.

        It does not describe a spec that was changed since then.
        """
        in_grace = self._schedule.in_grace(now) and not self._idle_phase
        is_of_spec = self._writer.describes(self._current.generation)
        return in_grace and is_of_spec and not self._gatherer.all_reported()

    async def _update_status(self) -> None:
        """Write the status, if it is due or people wait for the change."""
        self._last_check = now = _now()
        self._schedule.prolong_grace(
            now, self._current.interval_s, attaching=self._gatherer.awaits_agents
        )
        if self._earlier_stands(now):
            return
        self._schedule.end_grace()
        due = self._is_due(now)
        if due and self._pods.followed and self._current.spec:
            await self._gatherer.fetch_worst(self._current.spec, at=now)
        facts = await self._facts_in_turn()
        shape = outline(facts, now=timestamp(self._wall_clock()))
        if not due and not self._writer.turns(shape):
            return
        found = await self._draft(facts, now)
        if facts.generation != self._current.generation or facts.phase is not self._idle_phase:
            return  # it has changed since then, and is checked again
        if self._is_over:
            return
        if self._pods.followed:
            self._figures.keep(found)
        if due:
            self._schedule.mark_figures(now)
        part = self._writer.worth_writing(found.document, is_whole=found.left_out is None)
        if part:
            delay_s = await self._writer.write(part)
            if delay_s is not None:
                self._schedule.mark_failed(_now())
                await asyncio.sleep(delay_s)
                self.poke()
        await self._announce(facts, found, now)

    async def _announce(self, facts: ProbeFacts, found: Draft, now: float) -> None:
        """Write what has changed as Events: after the status, which has the figures."""
        spec = self._current.spec
        if self._is_over:
            return
        if not spec or not self._pods.followed:
            self._announcer.pause()
            return
        self._announcer.observe(found.document, spec, facts.nodes, found.judgements, at=now)
        await self._announcer.write(at=now)

    async def _facts_in_turn(self) -> ProbeFacts:
        """Return the facts, while no other probe takes such a step in this turn of the loop.

        With a thousand nodes, each of these steps takes some 20 ms.
        """
        async with self._building.of(self.key.namespace):
            await asyncio.sleep(0)
            return self._facts(_now())

    async def _draft(self, facts: ProbeFacts, now: float) -> Draft:
        async with self._building.of(self.key.namespace):
            if self._current.spec and self._pods.followed:
                facts = await self._gatherer.with_figures(facts, self._current.spec, at=now)
            await asyncio.sleep(0)
            found = self._build(facts)
        if self._pods.followed and not self._is_over:
            self._shown.show(self.key.uid, snapshot_of(self.key, facts, found.document))
        return found

    def _facts(self, now: float) -> ProbeFacts:
        """Return the facts without the figures."""
        current = self._current
        facts = ProbeFacts(
            spec=current.spec,
            generation=current.generation,
            phase=self._idle_phase,
            problem=current.problem or self._pods.problem(),
            start_time=current.start_time,
            measured_s=current.measured_s(self._steady_clock()),
            last_report_time=self._intake.last_report_time,
            previous=self._previous(),
        )
        if not self._pods.followed or not current.spec:
            return facts
        facts = self._gatherer.with_nodes(facts, current.spec, at=now)
        self._schedule.nodes = len(facts.nodes) + len(self._pods.left)
        if any(node.attached for node in facts.nodes):
            current.begin(self._steady_clock())
        return dataclasses.replace(facts, start_time=current.start_time)

    def _previous(self) -> Document:
        """Return the status before, as far as the next one takes over parts of it."""
        if not self._idle_phase:
            return self._writer.outline
        # When it ends, the last figures are written though they had no news.
        return {**self._writer.previous, **self._figures.whole()}

    def _build(self, facts: ProbeFacts) -> Draft:
        now = timestamp(self._wall_clock())
        light = draft_without_pods(facts, now=now, can_hold=self._writer.can_hold)
        draft = light or Draft(build(facts, now=now))
        return dataclasses.replace(draft, judgements=facts.objectives)


def _now() -> float:
    return asyncio.get_running_loop().time()
