"""The specs of a probe are taken in at once a few times, and then at a steady pace."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from latencyprobe_operator.api.spec import generation_of
from latencyprobe_operator.spec_pace import BURST, PACE_S, PacedSpecs
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import Json, probe_body

LOOP = VirtualTimeLoop


class Taken:
    """Notes the objects that are passed on, and the generations that are new in them."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []
        self.generations = [1]
        self.ports: list[list[int]] = []
        self.specs = PacedSpecs(self.take)
        self.specs.begin(probe_body())

    def take(self, body: Mapping[str, Any]) -> None:
        self.bodies.append(body)
        if generation_of(body) != self.generations[-1]:
            self.generations.append(generation_of(body))
            self.ports.append(body["spec"]["filter"]["ports"])


def changed(generation: int) -> Json:
    """The probe with another filter in each generation."""
    body = probe_body(generation=generation, filter={"ports": [generation]})
    body["metadata"]["resourceVersion"] = str(100 + generation)
    return {**body, "status": {"phase": "Running"}}


async def test_100_specs_in_10_seconds_are_taken_in_6_times() -> None:
    taken = Taken()
    for generation in range(2, 102):
        taken.specs.offer(changed(generation))
        await asyncio.sleep(0.1)
    assert taken.generations == [*range(1, 2 + BURST), pytest.approx(101, abs=2)]
    await asyncio.sleep(2 * PACE_S)
    assert taken.ports[-1] == [101], "the last one is not lost"
    assert len(taken.generations) <= 3 + BURST


async def test_a_spec_that_changes_for_an_hour_is_taken_in_at_a_steady_pace() -> None:
    taken = Taken()
    for generation in range(2, 7202):
        taken.specs.offer(changed(generation))
        await asyncio.sleep(0.5)
    assert 3600 / PACE_S <= len(taken.generations) <= 3600 / PACE_S + BURST + 1


async def test_after_quiet_times_specs_are_taken_in_at_once_again() -> None:
    taken = Taken()
    for generation in range(2, 30):
        taken.specs.offer(changed(generation))
    await asyncio.sleep(2 * BURST * PACE_S)
    taken.specs.offer(changed(30))
    assert taken.generations[-2:] == [29, 30]


async def test_the_status_and_version_of_an_object_are_passed_on_at_once() -> None:
    taken = Taken()
    for generation in range(2, 30):
        taken.specs.offer(changed(generation))
    assert len(taken.bodies) == 28
    assert taken.generations == [1, 2, 3, 4, 5, 6]
    assert taken.bodies[-1]["metadata"]["resourceVersion"] == "129"
    assert taken.bodies[-1]["status"] == {"phase": "Running"}
    await asyncio.sleep(PACE_S + 1)
    assert len(taken.bodies) == 29
    assert "status" not in taken.bodies[-1], "it may have changed since then"


async def test_a_probe_that_starts_again_has_its_pace() -> None:
    taken = Taken()
    for generation in range(2, 8):
        taken.specs.offer(changed(generation))
    taken.specs.begin(changed(7))
    count = len(taken.bodies)
    await asyncio.sleep(PACE_S / 2)
    assert len(taken.bodies) == count, "it began with that spec"
    taken.specs.offer(changed(8))
    assert generation_of(taken.bodies[-1]) == 7


@pytest.mark.parametrize("end", [lambda specs: specs.forget("uid-checkout"), PacedSpecs.close])
async def test_a_probe_that_is_gone_gets_no_spec(end: Any) -> None:
    taken = Taken()
    for generation in range(2, 30):
        taken.specs.offer(changed(generation))
    end(taken.specs)
    await asyncio.sleep(3 * PACE_S)
    assert taken.generations == [1, 2, 3, 4, 5, 6]
