"""An agent that measures what it is told by inventing it: ADDRESS TLS_FOLDER STATE_FILE.

Each second it reports 100 packets of each target, and writes what it was told last as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from functools import partial
from pathlib import Path

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tools.fakes.agent import AGENT_NAME, FakeAgent

PACKETS = 100
PORT = 9345
FIGURES = Measurement(
    {
        "rx.stack": StageMeasurement(Histogram.of([1_000_000] * PACKETS)),
        "rx.socket": StageMeasurement(Histogram.of([9_000_000] * PACKETS)),
        "rx.total": StageMeasurement(Histogram.of([10_000_000] * PACKETS)),
    },
    {"retransmits": 1},
)


async def serve(address: str, folder: Path, state_file: Path) -> None:
    """Serve until killed."""
    tls = ClientTlsFiles(
        folder / "ca.crt", folder / f"{AGENT_NAME}.crt", folder / f"{AGENT_NAME}.key"
    )
    agent = FakeAgent(tls, instance_id=str(uuid.uuid4()))
    agent.on_applied = partial(_write, agent, state_file)
    await agent.start(host=address, port=PORT)
    for tick in range(1_000_000):
        if agent.applied and agent.listeners and tick % 10 == 0:
            for probe in agent.applied[-1].probes:
                agent.report(probe.id, {target.id: FIGURES for target in probe.targets})
        await asyncio.sleep(0.1)


def _write(agent: FakeAgent, state_file: Path) -> None:
    state = agent.applied[-1]
    document = {
        "instance": agent.instance_id,
        "generation": state.generation,
        "probes": {
            probe.name: [target.container.container_id for target in probe.targets]
            for probe in state.probes
        },
    }
    new = state_file.with_suffix(".new")
    new.write_text(json.dumps(document))
    new.replace(state_file)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
