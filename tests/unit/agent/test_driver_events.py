"""How long programs see drivers free packets after a target's packet got to a driver."""

from __future__ import annotations

from latencyprobe_agent.kernel.runtime.driver_events import IDLE_S, DriverUse


def test_the_programs_are_wanted_until_no_driver_was_used_for_a_while() -> None:
    now = 100.0
    use = DriverUse(lambda: now)
    now += IDLE_S - 1
    assert use.is_recent(False)
    assert use.is_recent(True)
    now += IDLE_S - 1
    assert use.is_recent(False)
    now += 1
    assert not use.is_recent(False)


def test_a_packet_for_a_driver_has_them_wanted_again() -> None:
    now = 100.0
    use = DriverUse(lambda: now)
    now += IDLE_S
    assert not use.is_recent(False)
    assert use.is_recent(True)
