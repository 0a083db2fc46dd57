"""The hand-over of an object's descriptors."""

from __future__ import annotations

import os
from importlib.util import find_spec

from latencyprobe_agent.kernel.load.handover import COMPILER_MODULE, Handover
from latencyprobe_agent.kernel.request import Answer


def test_the_compiler_process_is_started_with_a_module_that_exists() -> None:
    assert find_spec(COMPILER_MODULE) is not None


def test_a_closed_hand_over_has_no_descriptors_and_may_be_closed_again() -> None:
    ends = os.pipe()
    handover = Handover(Answer(), list(ends), "")
    handover.close()
    handover.close()
    assert handover.descriptors == []
    assert not any(os.path.exists(f"/proc/self/fd/{descriptor}") for descriptor in ends)
