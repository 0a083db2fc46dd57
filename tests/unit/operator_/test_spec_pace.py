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


# ------------------------------------------------------------- probes that replace each other


class Created:
    """Probes that come and go, and the times when they begin to measure."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.specs = PacedSpecs(lambda _: None, self._begin)

    def create(self, name: str, namespace: str = "shop") -> None:
        body = probe_body(name, namespace=namespace)
        self.specs.begin(body)
        if not self.specs.serve(f"uid-{name}"):
            self._begin(f"uid-{name}")

    def delete(self, name: str) -> None:
        self.specs.forget(f"uid-{name}")

    def _begin(self, uid: str) -> None:
        self.began[uid] = asyncio.get_running_loop().time()

    def starts(self, since: float) -> int:
        """How many have begun since a time."""
        return sum(at >= since for at in self.began.values())


async def recreate(created: Created, names: int, *, seconds: int) -> None:
    """Have so many probes deleted and created again each second; each has another UID."""
    for second in range(seconds):
        for number in range(names):
            created.create(f"{number}-{second}")
        await asyncio.sleep(1)
        for number in range(names):
            created.delete(f"{number}-{second}")


@pytest.mark.parametrize("names", [1, 30])
async def test_probes_that_are_deleted_and_created_in_a_loop_begin_at_the_pace_of_specs(
    names: int,
) -> None:
    created = Created()
    await recreate(created, names, seconds=600)
    assert names * 50 <= len(created.began) <= names * (600 / PACE_S + BURST + 1)


async def test_another_name_has_the_pace_of_the_probe_that_it_replaces() -> None:
    created = Created()
    for number in range(300):
        created.create(f"{number}")
        created.delete(f"{number}")
    assert len(created.began) == BURST
    created.create("last")
    await asyncio.sleep(PACE_S)
    assert "uid-last" in created.began


async def test_a_probe_that_replaces_another_one_changes_at_the_pace_of_that_one() -> None:
    taken = Taken()
    taken.specs.serve("uid-checkout")
    for generation in range(2, 2 + BURST):
        taken.specs.offer(changed(generation))
    taken.specs.forget("uid-checkout")
    taken.specs.begin(probe_body("other"))
    assert taken.specs.serve("uid-other") == pytest.approx(2 * PACE_S)
    await asyncio.sleep(2 * PACE_S)
    for generation in range(2, 9):
        body = changed(generation)
        body["metadata"] |= {"name": "other", "uid": "uid-other"}
        taken.specs.offer(body)
    assert taken.generations == [*range(1, 2 + BURST), 2]


async def test_many_new_probes_begin_at_once() -> None:
    created = Created()
    for number in range(1000):
        created.create(f"{number}")
    assert len(created.began) == 1000


async def test_probes_that_are_all_replaced_begin_at_once() -> None:
    created = Created()
    for name in ("before", "after"):
        for number in range(100):
            created.create(f"{name}-{number}")
        if name == "before":
            for number in range(100):
                created.delete(f"{name}-{number}")
    assert len(created.began) == 200


async def test_namespaces_do_not_delay_each_other() -> None:
    created = Created()
    await recreate(created, 1, seconds=60)
    created.create("other", namespace="bank")
    assert "uid-other" in created.began


async def test_an_older_probe_takes_the_place_of_a_younger_one_at_once() -> None:
    """As after a start, when probes above the limit are listed in any order."""
    created = Created()
    for number in range(300):
        created.create(f"{number}")
        created.specs.refuse(f"uid-{number}")
    assert len(created.began) == 300


async def test_a_probe_that_waits_and_is_refused_does_not_begin() -> None:
    created = Created()
    await recreate(created, 1, seconds=10)
    created.create("late")
    created.specs.refuse("uid-late")
    await asyncio.sleep(10 * PACE_S)
    assert "uid-late" not in created.began
    assert created.specs.serve("uid-late") == 0


async def test_a_probe_that_starts_again_while_it_waits_has_the_rest_of_the_wait() -> None:
    created = Created()
    await recreate(created, 1, seconds=10)
    created.create("late")
    wait_s = created.specs.serve("uid-late")
    await asyncio.sleep(wait_s / 2)
    created.create("late")
    assert created.specs.serve("uid-late") == pytest.approx(wait_s / 2, abs=0.01)


async def test_paces_that_gone_probes_leave_take_no_memory_for_long() -> None:
    created = Created()
    for number in range(50):
        for name in ("a", "b"):
            created.create(f"{name}-{number}", namespace=f"{number}")
            created.delete(f"{name}-{number}")
    await asyncio.sleep(3 * PACE_S)
    for number in range(60):
        created.create(f"c-{number}", namespace="last")
        created.delete(f"c-{number}")
    assert created.specs._left.keys() == {"last"}
    assert len(created.specs._left["last"]) == 1
