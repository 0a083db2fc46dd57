"""Metrics pushed to a real receiver: with TLS and headers, and through an outage."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from kubernetes.aio.config import ConfigException
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from prometheus_client import CollectorRegistry, Gauge

from latencyprobe.otlp import pusher as pusher_module
from latencyprobe.otlp.backlog import Backlog
from latencyprobe.otlp.client import Acceptance, OtlpClient
from latencyprobe.otlp.encoding import Encoder, ExportRequest
from latencyprobe.otlp.files import OtlpFileError, read_headers
from latencyprobe.otlp.pusher import OtlpPusher
from latencyprobe.otlp.pushing import pushed
from latencyprobe.otlp.resources import ProcessResource
from latencyprobe.otlp.settings import OtlpEndpoint, OtlpSettings, OtlpTlsFiles
from latencyprobe.process.backoff import Backoff
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.main import Options, operate
from tests.patience import patient
from tests.unit.agent.running import until
from tests.unit.otlp_receiver import HOST, OtlpReceiver, Pki, receiving

SECRET = "t0p-s3cret-t0ken"
# The name and unit of a gauge of the agent, with values of the tests.
GAUGE, NAME = "latencyprobe_sampling_ratio", "latencyprobe.sampling.ratio"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@dataclass
class Pushing:
    """A registry with one gauge, and a push of it that does not wait long."""

    port: int
    tls: OtlpTlsFiles | None = None
    headers: Path | None = None
    queue_bytes: int = 1 << 20
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.gauge = Gauge(GAUGE, "Ratio.", registry=self.registry)

    @property
    def settings(self) -> OtlpSettings:
        return OtlpSettings(OtlpEndpoint(HOST, self.port), self.tls, self.headers, 0.02)

    def exported(self) -> float:
        return self.registry.get_sample_value("latencyprobe_otlp_exported_points_total") or 0

    def lost(self, reason: str) -> float:
        labels = {"reason": reason}
        return self.registry.get_sample_value("latencyprobe_otlp_lost_points_total", labels) or 0

    def queued(self) -> float:
        return self.registry.get_sample_value("latencyprobe_otlp_queued_bytes") or 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        client = OtlpClient(self.settings)
        pusher = OtlpPusher(
            client,
            self.registry,
            Encoder(ProcessResource.make("agent", {})),
            interval_s=self.settings.interval_s,
            backlog=Backlog(self.queue_bytes),
            backoff=Backoff(0.01, 0.05),
        )
        task = asyncio.create_task(pusher.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            await pusher.flush()
            await client.close()


# ----------------------------------------------------------------------------- arriving


async def test_metrics_arrive_over_tls_with_the_headers_of_the_file(pki: Pki) -> None:
    headers = pki.folder / "headers"
    headers.write_text(
        f"# for the gateway\nAuthorization: Bearer {SECRET}\n\nx-scope-orgid: shop\n"
    )
    receiver = OtlpReceiver()
    async with receiving(receiver, pki.server()) as port:
        push = Pushing(port, OtlpTlsFiles(pki.ca()), headers)
        push.gauge.set(0.25)
        async with push.running():
            await until(lambda: len(receiver.values(NAME)) > 1, "two pushes", seconds=patient(20))

    assert set(receiver.values(NAME)) == {0.25}
    (first, *_) = receiver.headers
    assert (first["authorization"], first["x-scope-orgid"]) == (f"Bearer {SECRET}", "shop")
    (resource,) = {tuple(each.resource.items()) for each in receiver.points}
    assert dict(resource)["service.name"] == "agent"
    assert push.exported() == len(receiver.points)


async def test_a_collector_may_ask_for_a_certificate(pki: Pki) -> None:
    receiver = OtlpReceiver()
    async with receiving(receiver, pki.server(wants_certificate=True)) as port:
        without = Pushing(port, OtlpTlsFiles(pki.ca()))
        async with without.running():
            await until(lambda: without.queued() > 500, "a queue", seconds=patient(20))
        assert not receiver.requests
        async with Pushing(port, pki.client()).running():
            await until(lambda: receiver.requests, "a push", seconds=patient(20))


async def test_a_collector_of_another_authority_gets_nothing(pki: Pki, tmp_path: Path) -> None:
    foreign = Pki(tmp_path / "foreign")
    foreign.folder.mkdir()
    receiver = OtlpReceiver()
    async with receiving(receiver, foreign.server()) as port:
        push = Pushing(port, OtlpTlsFiles(pki.ca()))
        async with push.running():
            await until(lambda: push.queued() > 500, "a queue", seconds=patient(20))

    assert (receiver.attempts, push.exported()) == (0, 0)


async def test_renewed_files_are_used_and_unusable_ones_change_nothing(
    pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    headers = pki.folder / "headers"
    headers.write_text("x-key: one\n")
    receiver = OtlpReceiver()

    def replaced(text: str) -> None:
        new = pki.folder / "new"
        new.write_text(text)
        new.replace(headers)

    def newest() -> object:
        return receiver.headers[-1].get("x-key") if receiver.headers else None

    caplog.set_level(logging.INFO)
    async with (
        receiving(receiver, pki.server()) as port,
        Pushing(port, OtlpTlsFiles(pki.ca()), headers).running(),
    ):
        await until(lambda: newest() == "one", "the first key", seconds=patient(20))
        replaced(f"no header {SECRET}\n")
        await until(lambda: "keeping the old files" in caplog.text, "a warning")
        before = len(receiver.headers)
        await until(lambda: len(receiver.headers) > before + 1, "more pushes")
        assert newest() == "one"
        replaced("x-key: two\n")
        await until(lambda: newest() == "two", "the second key", seconds=patient(20))

    assert f"{headers}, line 1 is no header" in caplog.text
    assert SECRET not in caplog.text


async def test_an_operator_pushes_its_figures_until_its_end(tmp_path: Path) -> None:
    kubeconfig, pem = tmp_path / "kubeconfig", tmp_path / "pem"
    kubeconfig.write_text("apiVersion: v1\nkind: Config\n")
    pem.touch()
    receiver = OtlpReceiver()
    async with receiving(receiver) as port:
        settings = OtlpSettings(OtlpEndpoint(HOST, port), None)
        options = Options(tls=ClientTlsFiles(pem, pem, pem), kubeconfig=kubeconfig, otlp=settings)
        with pytest.raises(ConfigException):
            await operate(options)

    assert receiver.values("latencyprobe.operator.leader") == [0]
    services = {each.resource["service.name"] for each in receiver.points}
    assert services == {"latencyprobe-operator"}


# ------------------------------------------------------------------------------- outage


async def test_an_outage_costs_a_bounded_queue_and_losses_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = OtlpReceiver()
    caplog.set_level(logging.INFO)
    async with receiving(receiver) as port:
        push = Pushing(port, queue_bytes=8_000)
        async with push.running():
            await until(lambda: receiver.requests, "a push", seconds=patient(20))
            receiver.status = (grpc.StatusCode.UNAVAILABLE, "down for a while")
            push.gauge.set(1)
            await until(lambda: push.lost("queue_full") > 20, "losses", seconds=patient(30))
            snapshot = max(request.ByteSize() for request in receiver.requests)
            # The queue, a snapshot, and the request that is being sent.
            assert push.queued() <= 8_000 + 2 * snapshot
            receiver.status = None
            push.gauge.set(2)
            await until(lambda: 2 in receiver.values(NAME), "recovery", seconds=patient(20))

    # In order, the oldest of the outage discarded, and every point accounted for.
    values = receiver.values(NAME)
    assert values == sorted(values)
    assert 1 in values
    # The end may cut off one answer; a queue that is full by then discards its request.
    uncounted = len(receiver.points) - push.exported()
    assert uncounted in (0, len(receiver.points) / len(receiver.requests))
    assert "UNAVAILABLE: down for a while" in caplog.text
    assert "metrics are exported by OTLP again" in caplog.text


async def test_a_collector_that_starts_later_gets_what_was_queued() -> None:
    async with receiving(OtlpReceiver()) as port:
        pass
    receiver, push = OtlpReceiver(), Pushing(port)
    push.gauge.set(1)
    async with push.running():
        await until(lambda: push.queued() > 500, "a queue", seconds=patient(20))
        push.gauge.set(2)
        async with receiving(receiver, port=port):
            await until(lambda: 2 in receiver.values(NAME), "its end", seconds=patient(60))

    assert receiver.values(NAME)[0] == 1
    assert push.lost("queue_full") == 0


async def test_at_the_end_the_newest_figures_are_sent() -> None:
    receiver = OtlpReceiver()
    async with receiving(receiver) as port:
        push = Pushing(port)
        async with push.running():
            push.gauge.set(7)

    assert receiver.values(NAME)[-1] == 7


async def test_at_the_end_an_absent_collector_costs_a_short_time_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pusher_module, "FLUSH_S", 0.2)
    async with receiving(OtlpReceiver()) as port:
        pass
    push = Pushing(port)
    async with push.running():
        pass

    assert push.lost("shutdown") > 0
    assert f"{push.lost('shutdown'):.0f} data points were not exported" in caplog.text


# ------------------------------------------------------------------------------ refusals


async def test_a_refused_request_is_lost_and_not_repeated(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, pki: Pki
) -> None:
    headers = tmp_path / "headers"
    headers.write_text(f"authorization: Bearer {SECRET}\n")
    status = (grpc.StatusCode.UNAUTHENTICATED, f"Bearer {SECRET} ({SECRET}) is not known")
    receiver = OtlpReceiver(status=status)
    async with receiving(receiver, pki.server()) as port:
        push = Pushing(port, OtlpTlsFiles(pki.ca()), headers)
        async with push.running():
            await until(lambda: receiver.attempts > 2, "three attempts", seconds=patient(20))

    assert push.lost("refused") > 0
    assert push.lost("queue_full") == push.lost("shutdown") == push.exported() == 0
    assert "UNAUTHENTICATED: [header] ([header]) is not known" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("asks", [True, False])
async def test_an_exhausted_collector_is_asked_again_if_it_says_when(*, asks: bool) -> None:
    detail = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo")
    details = (("grpc-status-details-bin", detail.SerializeToString()),)
    receiver = OtlpReceiver(
        status=(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much"), trailers=details if asks else ()
    )
    async with receiving(receiver) as port:
        push = Pushing(port)
        async with push.running():
            await until(lambda: receiver.attempts > 2, "three attempts", seconds=patient(20))
            assert (push.lost("refused") == 0) is asks


async def test_points_that_the_collector_rejects_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    partial = pb.ExportMetricsPartialSuccess(rejected_data_points=2, error_message="too old")
    receiver = OtlpReceiver(answer=pb.ExportMetricsServiceResponse(partial_success=partial))
    async with receiving(receiver) as port:
        push = Pushing(port)
        async with push.running():
            await until(lambda: len(receiver.requests) > 1, "two pushes", seconds=patient(20))

    pushes = len(receiver.requests)
    assert push.lost("rejected") == 2 * pushes
    assert push.exported() == len(receiver.points) - 2 * pushes
    assert "rejected 2 data points: too old" in caplog.text


async def test_figures_that_cannot_be_collected_do_not_end_the_push(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = OtlpReceiver()
    async with receiving(receiver) as port:
        push = Pushing(port)

        def fail() -> float:
            raise RuntimeError("no figure")

        push.gauge.set_function(fail)
        async with push.running():
            await until(lambda: "cannot collect the metrics" in caplog.text, "an error")
            push.gauge.set_function(lambda: 3.0)
            await until(lambda: 3 in receiver.values(NAME), "a push", seconds=patient(20))


async def test_an_unexpected_error_costs_requests_and_does_not_end_the_push(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    export = OtlpClient.export
    fails = True

    async def fail(self: OtlpClient, data: bytes) -> Acceptance:
        if fails:
            raise RuntimeError("no such thing")
        return await export(self, data)

    monkeypatch.setattr(OtlpClient, "export", fail)
    receiver = OtlpReceiver()
    async with receiving(receiver) as port:
        push = Pushing(port)
        async with push.running():
            await until(lambda: push.lost("error") > 20, "losses", seconds=patient(20))
            fails = False
            await until(lambda: receiver.requests, "a push", seconds=patient(20))

    errors = [record for record in caplog.records if "unexpected error" in record.message]
    assert all(record.exc_info for record in errors)
    assert push.exported() == len(receiver.points)
    assert "metrics are exported by OTLP again" in caplog.text


async def test_an_error_that_ends_the_push_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backlog = Backlog()
    monkeypatch.setattr(backlog, "add", Mock(side_effect=RuntimeError("no such thing")))
    push = Pushing(1)
    client = OtlpClient(push.settings)
    encoder = Encoder(ProcessResource.make("agent", {}))
    pusher = OtlpPusher(client, push.registry, encoder, interval_s=0.02, backlog=backlog)
    with pytest.raises(RuntimeError, match="no such thing"):
        await pusher.run()
    await client.close()
    assert "unexpected error; no metrics by OTLP until this process starts again" in caplog.text


async def test_a_repeated_error_is_logged_once_and_does_not_keep_the_process_from_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines = functools.partial(RepeatedLines, clock=lambda: 0.0)
    monkeypatch.setattr(pusher_module, "RepeatedLines", lines)

    async def fail(_self: OtlpClient, _data: bytes) -> Acceptance:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(OtlpClient, "export", fail)
    push = Pushing(1)
    async with push.running():
        await until(lambda: push.lost("error"), "a loss", seconds=patient(20))
        before = push.lost("error")
        await until(lambda: push.lost("error") > before, "another loss", seconds=patient(20))

    assert caplog.text.count("unexpected error; a request for OTLP is lost") == 1
    assert push.lost("shutdown") == push.queued() == 0


# -------------------------------------------------------------------------------- queue


def snapshot(number: int, requests: int = 1, size: int = 100) -> list[ExportRequest]:
    return [ExportRequest(bytes([number]) * size, points=1) for _ in range(requests)]


async def test_the_oldest_requests_make_room_and_a_large_snapshot_stays_whole() -> None:
    backlog = Backlog(limit_bytes=300)

    lost = [backlog.add(snapshot(number)) for number in range(5)]
    assert (lost, backlog.size, backlog.points) == ([0, 0, 0, 1, 1], 300, 3)
    assert (await backlog.take()).data[0] == 2
    assert backlog.add(snapshot(9, requests=10)) == 2
    assert (backlog.points, backlog.size) == (11, 1100)
    backlog.put_back()
    assert (await backlog.take()).data[0] == 2
    backlog.finish()
    assert (backlog.points, backlog.size) == (10, 1000)


# -------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (SECRET, "is no header; write NAME: VALUE"),
        (f"authorization {SECRET}", "is no header"),
        ("authorization:", "is no header"),
        (f"a: {SECRET}\x01", "is no header"),
        (f"{SECRET}!: x", "has a name that gRPC does not take"),
        (f"grpc-timeout: {SECRET}", "has a name that gRPC does not take"),
        (f"key-bin: {SECRET}", "has a name that gRPC does not take"),
        (f"te: {SECRET}", "has a name that gRPC does not take"),
    ],
)
def test_a_line_that_is_no_header_is_named_without_its_text(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = tmp_path / "headers"
    path.write_text(f"a: b\n{line}\n")

    with pytest.raises(OtlpFileError) as refused:
        read_headers(path)

    assert f"{path}, line 2 {complaint}" in str(refused.value)
    assert SECRET not in str(refused.value)


async def test_files_that_cannot_be_used_are_an_error_at_the_start(pki: Pki) -> None:
    foreign = Pki(pki.folder / "foreign")
    foreign.folder.mkdir()
    own, text = pki.client(), pki.folder / "text"
    text.write_text("no certificate")
    absent = pki.folder / "absent"
    unusable = {
        f"cannot read {absent}": OtlpTlsFiles(absent),
        f"{text} is not a PEM certificate": OtlpTlsFiles(text),
        "is not an unencrypted PEM key": replace(own, key=foreign.client().key),
    }
    for complaint, files in unusable.items():
        settings = Pushing(1, files).settings
        with pytest.raises(OtlpFileError, match=complaint):
            async with pushed(settings, CollectorRegistry(), "agent"):
                pass


# ------------------------------------------------------------------------------ imports


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_the_messages_of_otlp_are_imported_only_for_a_push(*, is_asked_for: bool) -> None:
    program = f"""
import asyncio, sys
import latencyprobe_agent.cli, latencyprobe_operator.cli
from pathlib import Path
from prometheus_client import CollectorRegistry
from latencyprobe.otlp.pushing import pushed
from latencyprobe.otlp.settings import OtlpEndpoint, OtlpSettings

async def main():
    settings = OtlpSettings(OtlpEndpoint("localhost", 1), None) if {is_asked_for} else None
    async with pushed(settings, CollectorRegistry(), "agent"):
        print(any(name.startswith("opentelemetry") for name in sys.modules))

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    assert done.stdout.strip() == str(is_asked_for)
