"""Each command that a verdict's next step contains runs on a node."""

from __future__ import annotations

import subprocess

import pytest

from tests.live.command import DEADLINE_S, LATENCYPROBE
from tests.live.targets import sleeper
from tests.next_steps import commands
from tests.patience import patient

OURS = [words for words in commands() if words[0] == "latencyprobe"]
ON_NODES = [words for words in commands() if words[0] not in ("latencyprobe", "kubectl")]


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_a_command_of_ours_measures(words: tuple[str, ...]) -> None:
    with sleeper() as process:
        options = [str(process.pid) if each == "PID" else each for each in words[1:]]
        if "--pid" not in options:
            options += ["--pid", str(process.pid)]
        ran = subprocess.run(
            [*LATENCYPROBE, *options, "--duration", "1s"],
            capture_output=True,
            text=True,
            timeout=patient(DEADLINE_S),
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert "verdict: " in ran.stdout


@pytest.mark.parametrize("words", ON_NODES, ids=" ".join)
def test_a_command_for_the_nodes_administrator_runs(words: tuple[str, ...]) -> None:
    ran = subprocess.run(words, capture_output=True, text=True, timeout=patient(30), check=False)
    assert ran.returncode == 0, ran.stderr
