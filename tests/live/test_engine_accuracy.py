"""What the engine measures, against what independent witnesses say."""

from __future__ import annotations

import pytest

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel.contract import SlotSpec, SocketFilter
from tests.live.measuring import (
    CLIENT,
    RX_PARTS,
    SERVER,
    TX_OF_A_PAIR,
    TX_PARTS,
    Start,
    account_for,
    assert_all_left,
    both,
    count,
    measure,
    median,
    watch,
)
from tests.live.pods import Namespace, Pod
from tests.live.sockets import (
    Connection,
    connection,
    read_all,
    sent_again,
    sent_from,
    wait_for_bytes,
    waiting_bytes,
)
from tests.live.truth import BUCKET
from tests.patience import patient

REQUEST_BYTES = 64
REMEMBERED = 64  # segments that wait in a socket: SEGMENTS, bpf/include/sockets.h

pytestmark = pytest.mark.shared_programs


@pytest.mark.every_kernel
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_counts_every_segment_once(
    start_engine: Start, pair: tuple[Pod, Pod], family: str, typed: bool
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server, typed=typed)
    address = server.address if family == "IPv4" else server.address6
    measured, _ = await measure(engine, client, server, 300, address=address)
    stages = ("rx.softirq", "rx.stack", "rx.socket", "rx.total", "tx.socket")
    for slot, pod in ((CLIENT, client), (SERVER, server)):
        accounts = {stage: account_for(measured[slot], stage) for stage in stages}
        assert accounts == dict.fromkeys(stages, (300, 0))
        for stage in set(TX_OF_A_PAIR) - set(stages):
            assert_all_left(measured[slot], stage, 300, sent_again(pod.namespace))
        assert "rx.host" not in measured[slot].stages
        assert "tx.host" not in measured[slot].stages


@pytest.mark.unscoped
@pytest.mark.every_kernel
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_counts_every_datagram_once(
    start_engine: Start, pair: tuple[Pod, Pod], family: str, typed: bool
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server, typed=typed)
    address = server.address if family == "IPv4" else server.address6
    measured, _ = await measure(engine, client, server, 300, "--protocol", "udp", address=address)
    for slot in (CLIENT, SERVER):
        for stage in ("tx.qdisc", "tx.total"):
            assert account_for(measured[slot], stage) == (300, 0), stage
        # A reader that is awake can take a datagram in the instant before we are told of it; an
        # emulated CPU may be at rest in that instant.
        samples, missing = account_for(measured[slot], "rx.socket")
        assert samples + missing == 300
        assert missing <= patient(3)
        assert count(measured[slot], "rx.total") == samples


async def test_parts_add_up_to_their_total(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, server = bridged
    engine = await both(start_engine, client, server, host_netns=host.inode)
    measured, _ = await measure(engine, client, server, 300)
    for measurement in measured.values():
        for total, parts in (("rx.total", RX_PARTS), ("tx.total", TX_PARTS)):
            whole = measurement.stage(total).histogram.sum_ns
            assert sum(measurement.stage(part).histogram.sum_ns for part in parts) == whole > 0


async def test_stages_show_the_path_through_the_host(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, server = bridged
    engine = await both(start_engine, client, server, host_netns=host.inode)
    measured, _ = await measure(engine, client, server, 300)
    for slot, pod in ((CLIENT, client), (SERVER, server)):
        for stage in ("rx.host", "rx.total"):
            assert count(measured[slot], stage) == 300, stage
        for stage in ("tx.host", "tx.total"):
            assert count(measured[slot], stage) in sent_from(pod, 300), stage


async def test_packet_from_a_process_of_the_host_has_no_host_stage(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, server = bridged
    engine = start_engine(host_netns=host.inode)
    engine.assign({SERVER: server.spec()})
    await engine.use(frozenset({Module.RX}))
    on_host = Pod(host, client.cgroup, "198.51.100.254", "")
    measured, _ = await measure(engine, on_host, server, 300)
    assert count(measured[SERVER], "rx.total") == 300
    assert "rx.host" not in measured[SERVER].stages


@pytest.mark.unscoped
@pytest.mark.every_kernel
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_sleeping_reader_is_found_in_rx_socket_and_nowhere_else(
    start_engine: Start, pair: tuple[Pod, Pod], protocol: str
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    options = ("--protocol", protocol)
    awake, _ = await measure(engine, client, server, 100, *options)
    asleep, account = await measure(engine, client, server, 100, *options, "--read-delay-ms", "20")
    slept = asleep[SERVER].stage("rx.socket").histogram
    assert slept.percentile(50) > 10_000_000
    assert slept.percentile(50) == pytest.approx(median(account["waits_ns"]), rel=BUCKET - 1)
    for stage in ("rx.softirq", "rx.stack"):
        before = awake[SERVER].stage(stage).histogram.min_ns
        after = asleep[SERVER].stage(stage).histogram.min_ns
        assert after < before + 1_000_000, stage


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_receive_times_agree_with_the_kernels_own_timestamps(
    start_engine: Start, pair: tuple[Pod, Pod], protocol: str
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    measured, account = await measure(
        engine, client, server, 400, "--protocol", protocol, "--read-delay-ms", "2"
    )
    # SO_TIMESTAMPING stamps in netif_receive_skb(), so after what rx.softirq measures.
    server_rx = measured[SERVER]
    ours = server_rx.stage("rx.total").histogram
    truth = Histogram.of(account["waits_ns"])
    assert ours.count == truth.count == 400
    for percent in (50, 99):
        assert ours.percentile(percent) == pytest.approx(truth.percentile(percent), rel=BUCKET - 1)
    softirq_ns = server_rx.stage("rx.softirq").histogram.sum_ns
    assert ours.sum_ns - softirq_ns == pytest.approx(truth.sum_ns, rel=0.02)


async def test_coalesced_segments_count_one_by_one(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    measured, _ = await measure(engine, client, server, 20, "--one-way", "--read-delay-ms", "20")
    # A sender that is held up puts several requests into one segment.
    segments = count(measured[SERVER], "rx.total")
    assert 2 <= segments <= 20
    assert count(measured[CLIENT], "tx.total") in sent_from(client, segments)
    assert measured[SERVER].stage("rx.socket").unmatched == 0


@pytest.mark.unscoped
@pytest.mark.every_kernel
async def test_a_queue_longer_than_our_memory_counts_as_lost(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with connection(client.namespace, server.namespace, server.address) as both_ends:
        send_one_by_one(both_ends, 100)
        read_all(both_ends.server, 50 * REQUEST_BYTES, piece=REQUEST_BYTES)
        send_one_by_one(both_ends, 20)
        read_all(both_ends.server, 70 * REQUEST_BYTES, piece=REQUEST_BYTES)
        stage = engine.read()[SERVER].stage("rx.socket")
    assert stage.lost == 100 - REMEMBERED
    assert stage.histogram.count == REMEMBERED + 20
    assert stage.unmatched == 0


def send_one_by_one(both_ends: Connection, times: int) -> None:
    """Requests of a segment each, that wait to be read."""
    waiting = waiting_bytes(both_ends.server)
    for number in range(1, times + 1):
        both_ends.client.sendall(b"q" * REQUEST_BYTES)
        wait_for_bytes(both_ends.server, waiting + number * REQUEST_BYTES)


async def test_a_departure_time_that_lies_ahead_is_clamped_and_counted(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    late = ("--depart-late-ms", "50")
    measured, _ = await measure(engine, client, server, 100, client_options=late)
    stage = measured[CLIENT].stage("tx.stack")
    sent = count(measured[CLIENT], "tx.total")
    assert sent in sent_from(client, 100)
    assert stage.clamped == sent - stage.histogram.count
    assert stage.clamped >= 90  # the first may leave before the option is in force
    assert measured[CLIENT].stage("tx.total").histogram.max_ns < 1_000_000_000


@pytest.mark.unscoped
@pytest.mark.every_kernel
async def test_a_slow_queueing_discipline_is_found_in_tx_qdisc(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, server = bridged
    # 16 kbit/s: a request of 130 bytes on the wire takes some 65 ms of tokens
    host.execute(
        *("tc", "qdisc", "add", "dev", "veth1", "root", "tbf"),
        *("rate", "16kbit", "burst", "200", "latency", "10s"),
    )
    engine = await both(start_engine, client, server, host_netns=host.inode)
    measured, _ = await measure(engine, client, server, 40)
    total = measured[CLIENT].stage("tx.total").histogram
    # the rest is that of a busy machine
    assert measured[CLIENT].stage("tx.qdisc").histogram.sum_ns > 0.6 * total.sum_ns
    assert total.percentile(50) > 5_000_000
    assert measured[SERVER].stage("tx.qdisc").histogram.min_ns < 1_000_000


@pytest.mark.unscoped
@pytest.mark.every_kernel
async def test_ports_filter_what_counts(start_engine: Start, pair: tuple[Pod, Pod]) -> None:
    client, server = pair
    engine = start_engine()
    wanted, other = SocketFilter(frozenset({7000})), SocketFilter(frozenset({7001}))
    engine.assign(
        {0: server.spec(wanted), 1: server.spec(other), 2: client.spec(wanted), 3: server.spec()}
    )
    await engine.use(frozenset(DEFAULT_MODULES))
    measured, _ = await measure(engine, client, server, 100)
    assert {slot: count(measured[slot], "rx.total") for slot in measured} == {
        0: 100,
        2: 100,
        3: 100,
    }
    assert count(measured[2], "tcp.connect") == 1


async def test_protocols_filter_what_counts(start_engine: Start, pair: tuple[Pod, Pod]) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({0: server.spec(SocketFilter(protocols=frozenset({"UDP"})))})
    await engine.use(frozenset(DEFAULT_MODULES))
    tcp, _ = await measure(engine, client, server, 50)
    udp, _ = await measure(engine, client, server, 50, "--protocol", "udp")
    assert tcp == {}
    assert sum(account_for(udp[0], "rx.socket")) == 50


async def test_a_whole_network_namespace_is_a_target(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = start_engine()
    inode = frozenset({server.namespace.inode})
    engine.assign({0: SlotSpec(netns_wide=inode, netns=inode)})
    await engine.use(frozenset(DEFAULT_MODULES))
    measured, _ = await measure(engine, client, server, 100)
    assert count(measured[0], "rx.total") == 100
    assert count(measured[0], "tx.total") in sent_from(server, 100)


@pytest.mark.unscoped
@pytest.mark.every_kernel
async def test_processes_are_targets_in_a_namespace_full_of_others(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = start_engine()
    serving = server.start("server", server.address, "7000", "100")
    stranger = server.start("server", server.address, "7001", "100")
    asking = client.start("client", server.address, "7000", "100")
    asking_stranger = client.start("client", server.address, "7001", "100")
    try:
        netns = frozenset({client.namespace.inode, server.namespace.inode})
        engine.assign(
            {
                CLIENT: SlotSpec(tgids=frozenset({asking.pid}), netns=netns),
                SERVER: SlotSpec(tgids=frozenset({serving.pid}), netns=netns),
            }
        )
        await engine.use(frozenset(DEFAULT_MODULES))
        for traffic in (asking, asking_stranger):
            traffic.go()
        for traffic in (serving, stranger, asking, asking_stranger):
            traffic.result()
    finally:
        for traffic in (serving, stranger, asking, asking_stranger):
            traffic.stop()
    measured = engine.read()
    for slot, pod in ((CLIENT, client), (SERVER, server)):
        assert count(measured[slot], "rx.total") == 100
        assert count(measured[slot], "tx.total") in sent_from(pod, 100)
    assert count(measured[CLIENT], "tcp.connect") == 1
    assert count(measured[SERVER], "tcp.handshake") == 1
