"""Packed measurements: what comes out is what went in."""

from __future__ import annotations

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, NodeStage, StageMeasurement
from latencyprobe.protocol.packed import pack, pack_node, unpack, unpack_node, unpack_stages

STAGE = StageMeasurement(Histogram.of([1000, 2000]), 1, 2, 3, 0.5)
WHOLE = Measurement({"rx.total": STAGE, "tx.total": STAGE}, {"retransmits": 4}, {"Drops": 5})


def test_a_measurement_survives_packing() -> None:
    assert unpack(pack(WHOLE)) == WHOLE
    assert unpack(pack(Measurement())) == Measurement()


def test_single_stages_are_unpacked() -> None:
    assert unpack_stages(pack(WHOLE), ["rx.total", "rx.socket"]) == {"rx.total": STAGE}


def test_the_stages_of_a_node_survive_packing() -> None:
    stages = {NodeStage("irq.hard", "eth0"): STAGE, NodeStage("irq.hard", "eth1"): STAGE}

    assert unpack_node(pack_node(stages)) == stages


def test_no_stages_take_no_bytes() -> None:
    assert pack_node({}) == b""
    assert unpack_node(b"") == {}
