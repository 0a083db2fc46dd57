"""`latencyprobe` with an agent whose readings are never of an earlier moment.

A machine that rests within one makes it long, and the agent pauses: its last reading before a
verdict may then be older than the traffic. And an emulated machine, beside another one, may compile
for longer than the agent waits. Run by its path, since the agent's Python is isolated.
"""

from __future__ import annotations

import math

from latencyprobe.commands import cli
from latencyprobe_agent.kernel.load import handover
from latencyprobe_agent.kernel.runtime import reading_pause

COMPILE_S = 1200

if __name__ == "__main__":
    reading_pause.LONG_S = math.inf
    handover._COMPILE_TIMEOUT_S = COMPILE_S
    cli.main(prog_name="latencyprobe")
