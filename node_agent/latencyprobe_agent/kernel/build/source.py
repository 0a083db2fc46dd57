"""The translation unit: our C files joined, behind the macros that the vocabulary dictates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from latencyprobe.domain.histogram import MANTISSA_THRESHOLDS
from latencyprobe.domain.stages import COUNTERS, INDEX, PACKET_STAGES, STAGES, TARGET_STAGES, Module
from latencyprobe_agent.kernel.build.drops import NR_DROP_REASONS
from latencyprobe_agent.kernel.contract import MAX_SLOTS

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
# The maps that the agent writes or reads; all others are the programs' own.
MAPS = (
    "configuration",
    "stats",
    "cgroups",
    "processes",
    "filters",
    "filter_ports",
)
# There with the module irq (bpf/irq.bpf.c).
IRQ_MAPS = ("node_stats", "handler_names")
# There while packets are traced (bpf/trace.h).
TRACE_MAPS = ("trace_control", "trace_ring")
# An event has room for all stages up to a packet's last one, by their own indices.
EVENT_STAGES = 1 + max(INDEX[stage.name] for stage in PACKET_STAGES)

# softirq_to_name[], kernel/softirq.c: the same ten since 4.18
VECTORS = (
    *("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"),
)
MAX_HANDLERS = 64


def source_folder() -> Path:
    """Where the C files are: inside the installed package, or `bpf/` of a checkout."""
    installed = Path(__file__).parents[2] / "bpf"
    return installed if installed.is_dir() else Path(__file__).parents[4] / "bpf"


def maps_of(modules: Iterable[Module], *, trace: bool) -> tuple[str, ...]:
    """The maps that the agent is to have of these modules' object."""
    maps = (*MAPS, *IRQ_MAPS) if Module.IRQ in modules else MAPS
    return (*maps, *TRACE_MAPS) if trace else maps


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
        "MAX_SLOTS": MAX_SLOTS,
        "NR_STAGES": len(TARGET_STAGES),
        "NR_PACKET_STAGES": EVENT_STAGES,
        "NR_SOFTIRQ_VECTORS": len(VECTORS),
        "MAX_HANDLERS": MAX_HANDLERS,
        "NR_COUNTERS": len(COUNTERS),
        "NR_DROP_REASONS": NR_DROP_REASONS,
        **{f"MODULE_{module.name}": 1 for module in wanted},
        **{stage.macro: index for index, stage in enumerate(STAGES)},
        **{counter.macro: index for index, counter in enumerate(COUNTERS)},
        **drops,
        **{f"WITH_{function.upper()}": 1 for function in sorted(functions)},
        **{f"THRESHOLD_{j}": f"{value}ULL" for j, value in enumerate(MANTISSA_THRESHOLDS)},
    }
    lines = [f"#define {name} {value}" for name, value in macros.items()]
    folder = source_folder()
    return "\n".join([*lines, *((folder / file).read_text() for file in files)])
