"""Garbage collections of an operator with many agents, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

REPLACED = """
import gc
from latencyprobe_operator.garbage import GarbageCollector, make_collections_rare

make_collections_rare()
collector, figures, largest = GarbageCollector(), {}, 0
for report in range(30_000):
    figures[report % 10_000] = [[number] for number in range(20)]
    collector.note_report()
    largest = max(largest, len(gc.get_objects(0)) if report % 100 == 0 else 0)
print(largest)
"""
FROZEN = """
import gc
from latencyprobe_operator.garbage import GarbageCollector

kept = [[number] for number in range(100_000)]
GarbageCollector().note_attached()
print(len(gc.get_objects()))
del kept
print(gc.get_freeze_count())
"""
OLD = """
import gc
from latencyprobe_operator.garbage import GarbageCollector, make_collections_rare

make_collections_rare()
now = [0.0]
collector = GarbageCollector(lambda: now[0])
gone = [[] for _ in range(50_000)]
for each in gone:
    each.append(each)
gc.collect(1)
before = len(gc.get_objects())
del gone, each
for now[0] in (3500, 3601):
    for _ in range(500):
        collector.note_report()
    print(before - len(gc.get_objects()))
"""


def printed_by(code: str) -> list[int]:
    """Run this code; return the numbers that it prints."""
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=100
    )
    return [int(line) for line in shown.stdout.split()]


def test_figures_that_replace_others_are_not_young_by_the_hundred_thousand() -> None:
    (largest,) = printed_by(REPLACED)

    assert largest < 20_000


def test_objects_of_attached_agents_are_left_out_and_still_freed() -> None:
    tracked, frozen = printed_by(FROZEN)

    assert tracked < 10_000
    assert frozen < 90_000


def test_old_garbage_is_collected_once_an_hour() -> None:
    early, late = printed_by(OLD)

    assert early < 100
    assert late >= 50_000
