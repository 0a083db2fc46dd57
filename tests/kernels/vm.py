"""Virtual machines: a kernel, this machine's files (read-only), and one program to run.

virtme-ng makes the initramfs and qemu's command line. The guest has two network devices that are
joined to each other and to nothing else, and no way to the network outside.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.debian import Kernel
from tests.kernels.errors import KernelError

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent  # virtme-ng calls its own programs by name
GUEST = Path(__file__).with_name("guest.sh")
NICS = ("52:54:00:00:00:01", "52:54:00:00:00:02")
MEMORY_BYTES = 2 << 30
# Emulated on a busy machine, a CPU may rest for half a minute.
PATIENT_WATCHDOGS = "watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120"
_TAIL_LINES = 40
# What the kernel says when it has found itself in a state that it should not be in.
_COMPLAINTS = re.compile(r"BUG:|WARNING: CPU|Oops|Call Trace|Kernel panic|unregister_netdevice:")


class GuestFailedError(KernelError):
    """A guest that did not run its program to the end; with the end of its console."""

    def __init__(self, what: str, console: Console) -> None:
        super().__init__(f"{what}. The end of its console:\n{console.tail()}")


@dataclass(frozen=True, slots=True)
class Console:
    """What a guest's kernel and its program printed."""

    path: Path

    def tail(self) -> str:
        return "\n".join(self._lines()[-_TAIL_LINES:])

    def complaints(self) -> list[str]:
        """Lines in which the kernel says that something is wrong with it."""
        return [line for line in self._lines() if _COMPLAINTS.search(line)]

    def _lines(self) -> list[str]:
        return self.path.read_text(errors="replace").splitlines()


async def run(kernel: Kernel, command: Sequence[str], shared: Path, *, seconds: float) -> Console:
    """Run a program under the kernel and return its console once the guest has ended.

    `shared` is a folder that the guest may write. Raises GuestFailedError if the guest hangs, dies
    or can't start the program; the program's own exit status is in `shared`/status.
    """
    console = Console(shared / "console.log")
    began = time.monotonic()
    with console.path.open("wb") as output:
        guest = await asyncio.create_subprocess_exec(
            *_command_line(kernel, command, shared),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"},
        )
        try:
            async with asyncio.timeout(seconds):
                await guest.wait()
        except TimeoutError:
            raise GuestFailedError(
                f"{kernel.version} did not end in {seconds} s", console
            ) from None
        finally:
            if guest.returncode is None:
                os.killpg(guest.pid, signal.SIGKILL)
                await guest.wait()
    if not (shared / "status").exists():
        spent = time.monotonic() - began
        raise GuestFailedError(f"{kernel.version} died after {spent:.0f} s", console)
    return console


def _command_line(kernel: Kernel, command: Sequence[str], shared: Path) -> list[str]:
    devices = [
        # One thread for both CPUs, so a guest takes one of this machine's. With one each, qemu 7.2
        # may for ever run code that the kernel has patched meanwhile (a breakpoint that is gone),
        # as it does for every tracepoint.
        "-accel tcg,thread=single",
        "-fsdev local,id=kernels,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device virtio-9p-pci,fsdev=kernels,mount_tag=kernels",
    ]
    for number, address in enumerate(NICS):
        devices += [
            f"-netdev hubport,id=nic{number},hubid=0",
            f"-device virtio-net-pci,netdev=nic{number},mac={address}",
        ]
    return [
        *("nice", "-n", "10"),
        *("vng", "--disable-kvm", "--verbose", "--run", str(kernel.image)),
        *("--memory", f"{MEMORY_BYTES >> 20}M", "--cpus", "2"),
        # An end instead of a hang. Both CPUs have this machine's clock; older kernels do not
        # believe it and take a slow one.
        f"--append=panic=-1 oops=panic tsc=reliable {PATIENT_WATCHDOGS}",
        f"--rwdir={shared}",
        f"--qemu-opts={' '.join(devices)}",
        "--",
        *("bash", str(GUEST), str(shared), *command),
    ]
