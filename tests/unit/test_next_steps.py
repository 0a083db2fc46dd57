"""Each next step has a command or a setting that its reader may use, or says whom to ask."""

from __future__ import annotations

import re

import pytest

from latencyprobe.domain.causes import CAUSES, Bottleneck
from latencyprobe.domain.verdict import NEXT_STEPS
from tests.next_steps import commands

NOTHING_TO_DO = "Nothing to do: no wait is worth a person's attention."
COMMAND = re.compile(r"`[^`]+`")
SETTING = re.compile(
    r"\b(spec\.\w+|resources\.\w+|net\.\w+|SO_\w+|TCP_\w+|GOMAXPROCS)\b|kubernetes\.io/"
)
ASKS = re.compile(r"\b[Aa]sk the (node|cluster)'s administrator\b")
# These need the node.
OF_NODES = re.compile(r"`(cat|ip|nft|tc|latencyprobe run --pid)\b")


@pytest.mark.parametrize("step", sorted(NEXT_STEPS - {NOTHING_TO_DO}))
def test_a_next_step_is_a_command_a_setting_or_a_question_to_an_administrator(step: str) -> None:
    assert COMMAND.search(step) or SETTING.search(step) or ASKS.search(step), step


@pytest.mark.parametrize("step", sorted(filter(OF_NODES.search, NEXT_STEPS)))
def test_a_command_that_needs_the_node_is_for_its_administrator(step: str) -> None:
    assert re.search(r"\bask the node's administrator\b", step, re.IGNORECASE), step


def test_commands_of_every_next_step_are_found() -> None:
    found = set(commands())
    for step in NEXT_STEPS:
        for line in COMMAND.findall(step):
            assert tuple(line.strip("`").split()) in found
    assert ("kubectl", "get", "pods") in found  # of a step of what is not judged


@pytest.mark.parametrize(
    "cause", [Bottleneck.SLOW_READER, Bottleneck.APPLICATION, Bottleneck.ACCEPT_QUEUE]
)
def test_a_cause_that_contains_waits_for_a_cpu_names_the_module_that_shows_them(
    cause: Bottleneck,
) -> None:
    assert "Module sched (spec.modules" in CAUSES[cause].next_step
