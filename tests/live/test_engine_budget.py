"""The cost of the programs, and the budget that they are kept to."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from latencyprobe_agent.kernel.contract import ASSUMED_DISPATCH_NS
from latencyprobe_agent.kernel.runtime.dispatch import LEAST_NS, MOST_NS, measure
from tests.live.loaded_programs import links_of, programs_of


def name_of_this_thread() -> bytes:
    return Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_bytes()


def test_the_cost_of_a_call_is_measured_and_leaves_nothing() -> None:
    name, programs, links = name_of_this_thread(), programs_of(os.getpid()), links_of(os.getpid())
    dispatch = measure()
    if dispatch.reason:
        assert dispatch.ns == ASSUMED_DISPATCH_NS
        assert dispatch.reason.endswith(" ns"), "neither a figure nor noise"
    else:
        assert LEAST_NS <= dispatch.ns <= MOST_NS
    assert name_of_this_thread() == name
    assert (programs_of(os.getpid()), links_of(os.getpid())) == (programs, links)
