"""The command line with a scripted agent: `command_line.py SCENARIO ARG...`, without privileges."""

from __future__ import annotations

import sys
from pathlib import Path

from latencyprobe.commands import cli
from latencyprobe.local import agent_process
from latencyprobe.process import capabilities

ROOT = Path(__file__).parents[2]
# The agent has another working directory, and no PYTHONPATH.
SCRIPTED_AGENT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.unit.scripted_agent import main
main()
"""


def main() -> None:
    """Run the command line as if the machine had this agent."""
    scenario = sys.argv.pop(1)
    agent_process.AGENT_COMMAND = (sys.executable, "-c", SCRIPTED_AGENT, scenario)
    capabilities.NEEDED.clear()
    cli.main(prog_name="latencyprobe")


if __name__ == "__main__":
    main()
