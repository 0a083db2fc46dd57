"""Accounts that the programs of situations keep by their own clocks.

A program prints `ready`. With each line of its standard input it begins, or goes on, and with its
account, a line of JSON, it says that it has seen enough. It ends with standard input.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

SLOW_NS = 100_000_000


def ready() -> None:
    print("ready", flush=True)


def wait_for_line() -> bool:
    """Whether there was one before the end."""
    return bool(sys.stdin.readline())


def report(account: Mapping[str, float]) -> None:
    print(json.dumps(account), flush=True)


def run_role(roles: Mapping[str, Callable[..., None]]) -> None:
    """Play the role of the command line, with its options in JSON."""
    role, options = sys.argv[1:]
    roles[role](**json.loads(options))


def use_cpu(milliseconds: float) -> None:
    """Use so much CPU time."""
    until = time.thread_time() + milliseconds / 1e3
    while time.thread_time() < until:
        pass


class Clock:
    """The durations of one kind, those that have not ended included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended_ns: list[int] = []
        self._began_ns: dict[int, int] = {}
        self._failed = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time a block; an OSError in it is a failure."""
        key, began_ns = threading.get_ident(), time.monotonic_ns()
        with self._lock:
            self._began_ns[key] = began_ns
        try:
            yield
        except OSError:
            with self._lock:
                self._failed += 1
            raise
        else:
            with self._lock:
                self._ended_ns.append(time.monotonic_ns() - began_ns)
        finally:
            with self._lock:
                del self._began_ns[key]

    def account(self, prefix: str = "") -> dict[str, float]:
        """Figures since the last account."""
        with self._lock:
            ended, self._ended_ns = sorted(self._ended_ns), []
            ages_ns = [time.monotonic_ns() - began_ns for began_ns in self._began_ns.values()]
            failed, self._failed = self._failed, 0
        figures = {
            "count": len(ended),
            "failed": failed,
            "pending": len(ages_ns),
            "oldest_s": max(ages_ns, default=0) / 1e9,
            "slow": sum(ns > SLOW_NS for ns in ended),
            "sum_s": sum(ended) / 1e9,
            "p50_ms": _percentile(ended, 50) / 1e6,
            "p99_ms": _percentile(ended, 99) / 1e6,
            "max_ms": max(ended, default=0) / 1e6,
        }
        return {prefix + name: value for name, value in figures.items()}


def _percentile(ordered: list[int], percent: int) -> int:
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] if ordered else 0
