"""A client of an agent that reads reports, as the operator does: a process of its own.

python -m bench.report_reader FOLDER ADDRESS PODS MAX_PODS. It makes the certificates in the folder,
and prints the paths of the agent's. It applies a probe of so many pods, and reads until its input
ends. Then it prints the size of the newest report.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from bench.probe_of_windows import INTERVAL_S, INTERVALS_OF_A_WINDOW
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from tools.fakes.agent import Authority


def main() -> None:
    """Make certificates, and read reports until the input ends."""
    folder, address, pods, max_pods = sys.argv[1:]
    authority = Authority.make(Path(folder))
    own = authority.issue(AGENT_NAME)
    print(own.ca, own.certificate, own.key, flush=True)
    reader = _Reader(address, int(pods), int(max_pods))
    asyncio.run(reader.read_until_the_input_ends(authority.issue(OPERATOR_NAME).credentials()))
    print(reader.newest_bytes, flush=True)


class _Reader:
    def __init__(self, address: str, pods: int, max_pods: int) -> None:
        self._address = address
        self._state = _state(pods, max_pods)
        self.newest_bytes = 0

    async def read_until_the_input_ends(self, credentials: grpc.ChannelCredentials) -> None:
        reading = asyncio.create_task(self._read(credentials))
        await asyncio.to_thread(sys.stdin.read)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await reading

    async def _read(self, credentials: grpc.ChannelCredentials) -> None:
        options = [("grpc.ssl_target_name_override", AGENT_NAME)]
        async with grpc.aio.secure_channel(self._address, credentials, options) as channel:
            stub = NodeAgentStub(channel)
            # The types of the stubs know neither `write` nor clients of asyncio.
            call: Any = stub.WatchReports(wait_for_ready=True)
            await call.write(pb.WatchReportsRequest())
            await stub.Apply(self._state, wait_for_ready=True)
            while (report := await call.read()) is not grpc.aio.EOF:
                await call.write(pb.WatchReportsRequest(acknowledged=report.sequence))
                self.newest_bytes = report.ByteSize()


def _state(pods: int, max_pods: int) -> pb.DesiredState:
    probe = pb.Probe(
        id="bench",
        name="bench",
        modules=[str(module) for module in DEFAULT_MODULES],
        interval=Duration(seconds=INTERVAL_S),
        window=Duration(seconds=INTERVAL_S * INTERVALS_OF_A_WINDOW),
        max_pods=max_pods,
        pods_in_full=pb.PodChoice(most=max_pods),
        targets=[
            pb.Target(
                id=str(number),
                container=pb.Container(
                    pod_uid=f"00000000-0000-0000-0000-{number:012x}",
                    container_id=f"containerd://{number:064x}",
                    pod_name=f"checkout-{number:05}",
                    container_name="server",
                ),
            )
            for number in range(1, pods + 1)
        ],
    )
    return pb.DesiredState(generation=1, probes=[probe])


if __name__ == "__main__":
    main()
