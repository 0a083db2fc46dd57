"""The translation unit: our C files joined, behind the macros that the vocabulary dictates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import MACROS, assertions

_HEADERS = ("kernel.h", "common.h", "histogram.h", "targets.h", "trace.h", "sockets.h")
# In this order: what rx says of a packet's reader it has from sched.
_MODULE_FILES: Mapping[Module, tuple[str, ...]] = {
    Module.IRQ: ("irq.bpf.c",),
    Module.SCHED: ("sched.bpf.c",),
    Module.RX: ("rx.bpf.c",),
    Module.TX: ("send.bpf.c", "devices.bpf.c", "tx.bpf.c", "driver.bpf.c"),
    Module.TCP: ("turns.bpf.c", "tcp.bpf.c", "drops.bpf.c"),
}
# Shared by modules: included once if one of them is wanted.
_SHARED_FILES: Mapping[str, frozenset[Module]] = {
    "softirq.bpf.c": frozenset({Module.RX, Module.TX, Module.IRQ}),
    "segment.bpf.c": frozenset({Module.RX, Module.TCP}),
    "read.bpf.c": frozenset({Module.RX, Module.TCP}),
    "ready.bpf.c": frozenset({Module.RX, Module.TCP}),
    "sendmsg.bpf.c": frozenset({Module.TX, Module.TCP}),
}


def source_folder() -> Path:
    """Where the C files are: inside the installed package, or `bpf/` of a checkout."""
    installed = Path(__file__).parents[2] / "bpf"
    return installed if installed.is_dir() else Path(__file__).parents[4] / "bpf"


def compose(
    modules: Iterable[Module],
    *,
    host_netns: int,
    from_btf: bool,
    typed: bool,
    functions: Iterable[str] = (),
    trace: bool = False,
    drops: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The C source of these modules.

    `from_btf`: types come from BTF, else from the kernel's headers (bpf/kernel.h).
    `typed`: programs are bound by BTF (bpf/common.h). `functions`: the programs wanted, of those
    that are alternatives to others. `trace`: packets one by one (bpf/trace.h).
    `drops`: the kernel's numbers of drop reasons, by macro.
    """
    wanted = frozenset(modules)
    files = [
        *_HEADERS,
        *(file for module, files in _MODULE_FILES.items() if module in wanted for file in files),
        *(file for file, modules in _SHARED_FILES.items() if modules & wanted),
    ]
    macros = {
        "FROM_BTF": int(from_btf),
        "TYPED": int(typed),
        "TRACE": int(trace),
        "HOST_NETNS": f"{host_netns}U",
        **MACROS,
        **{f"MODULE_{module.name}": 1 for module in wanted},
        **drops,
        **{f"WITH_{function.upper()}": 1 for function in sorted(functions)},
    }
    lines = [f"#define {name} {value}" for name, value in macros.items()]
    folder = source_folder()
    texts = ((folder / file).read_text() for file in files)
    return "\n".join([*lines, *texts, *assertions(wanted, trace=trace)])
