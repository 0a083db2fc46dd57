"""The same measurement by bpftrace, the usual alternative."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.outcome import CannotMeasureError

_SCRIPT = Path(__file__).with_name("latency.bt")
_ATTACH_S = 20
# bpftrace finds tracepoints in tracefs; without a mount of it, bpftrace sees it and we do not
_MOUNT = (
    "mount -t debugfs nodev /sys/kernel/debug 2>/dev/null;"
    'mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null; exec bpftrace "$1"'
)


def is_installed() -> bool:
    """Return True if bpftrace is on the PATH."""
    return shutil.which("bpftrace") is not None


@contextmanager
def bpftrace() -> Iterator[None]:
    """Run bpftrace with our script attached, for the time of the `with` block."""
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT, "sh", _SCRIPT],
            stdout=words,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_attached(process)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        words.seek(0)
        if "@rx_total" not in words.read():
            raise CannotMeasureError("bpftrace ran, and saw no packet")


def _wait_until_attached(process: subprocess.Popen[bytes]) -> None:
    """Wait until it holds a link or perf event for each of its probes."""
    wanted = sum(line.startswith("tracepoint:") for line in _SCRIPT.read_text().splitlines())
    deadline = time.monotonic() + _ATTACH_S
    held = 0
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise CannotMeasureError(f"bpftrace ended with status {process.returncode}")
        held = _perf_events(process.pid)
        if held >= wanted:
            return
        time.sleep(0.05)
    raise CannotMeasureError(f"bpftrace attached {held} of {wanted} probes within {_ATTACH_S} s")


def _perf_events(pid: int) -> int:
    events = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            events += "perf_event" in str(descriptor.readlink())
        except OSError:
            continue  # closed since the listing
    return events
