"""bcc's tools (Debian's bpfcc-tools) that measure something near to a stage of ours.

They are C that bcc compiles against a kernel's headers. Where there are none, they get the tree
that our own programs are compiled against, and some macros beside it. The error has the output of a
tool that cannot run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.outcome import CannotMeasureError
from latencyprobe_agent.kernel.btf import KernelTypes, NoBtfError
from latencyprobe_agent.kernel.build.headers import kernel_source, version_code

_ATTACH_S = 60
_END_S = 10
_MOST_SAID = 400
# The tools find tracepoints by tracefs, through debugfs.
_MOUNT = (
    "mount -t debugfs nodev /sys/kernel/debug 2>/dev/null;"
    "mount -t tracefs nodev /sys/kernel/debug/tracing 2>/dev/null;"
    'exec "$@"'
)
# The headers that they include.
_INCLUDED = (
    *("uapi/linux/ptrace.h", "linux/tcp.h", "net/sock.h", "net/inet_sock.h", "net/tcp_states.h"),
    *("uapi/linux/if_ether.h", "uapi/linux/if_arp.h"),
)
_HEADER = Path(__file__).with_name("bcc_tools.h")


@dataclass(frozen=True, slots=True)
class BccTool:
    """A tool. `ready`: the beginning of the line that it prints once it is attached."""

    name: str
    nearest: str
    ready: str

    @property
    def program(self) -> str:
        """Debian's name of it."""
        return f"{self.name}-bpfcc"


BCC_TOOLS = (
    BccTool("tcplife", "tcp.connect: a line for each connection", "PID "),
    BccTool("tcprtt", "tcp.rtt", "Tracing TCP RTT"),
    BccTool("tcpconnlat", "tcp.connect", "PID "),
    BccTool("softirqs", "irq.softrun", "Tracing soft irq"),
)


@contextmanager
def headers() -> Iterator[Mapping[str, str]]:
    """Provide headers for the tools; yield the environment by which bcc finds them."""
    try:
        types = KernelTypes()
    except NoBtfError:
        yield {}  # bcc finds installed ones by itself
        return
    with kernel_source(types) as source:
        for name in _INCLUDED:
            path = source.path / "include" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_HEADER.read_text())
        yield {
            "BCC_KERNEL_SOURCE": str(source.path),
            "BCC_LINUX_VERSION_CODE": str(version_code()),
        }


@contextmanager
def running(tool: BccTool, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a tool, attached, for the time of the `with` block.

    Raises CannotMeasureError with the tool's own message.
    """
    program = shutil.which(tool.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise CannotMeasureError(f"{tool.program} is not installed: install bpfcc-tools")
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT, "sh", program],
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(process, tool, output)
            yield
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], tool: BccTool, output: IO[str]) -> None:
    deadline = time.monotonic() + _ATTACH_S
    while True:
        has_ended = process.poll() is not None
        said = _said(output)
        if any(line.startswith(tool.ready) for line in said.splitlines()):
            return
        if has_ended:
            raise CannotMeasureError(message_in(said))
        if time.monotonic() > deadline:
            raise CannotMeasureError(f"not attached in {_ATTACH_S} s: {message_in(said)}")
        time.sleep(0.05)


def _said(output: IO[str]) -> str:
    # Not by the position that the tool writes at: the descriptor is shared.
    return os.pread(output.fileno(), 1 << 16, 0).decode(errors="replace")


def message_in(output: str) -> str:
    """Return what a tool says of its failure, in one line: no warnings, no lines of its code."""
    said = [
        line.strip()
        for line in output.splitlines()
        if line.strip() and not line.startswith((" ", "WARNING", "Traceback"))
    ]
    return "; ".join(said)[:_MOST_SAID] or "it ended without a message"
