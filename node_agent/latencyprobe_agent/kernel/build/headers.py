"""The header tree that bcc compiles our programs against.

bcc requires a kernel's build tree. Nodes rarely have one, so we make a minimal tree from the
running kernel's BTF. It has a few stubs, and `latencyprobe/kernel_types.h` with the structs that
our programs read. Without BTF, the distribution's kernel headers are used instead.
"""

from __future__ import annotations

import mmap
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from latencyprobe.process.temporary import temporary_folder
from latencyprobe_agent.kernel.btf import KernelTypes
from latencyprobe_agent.kernel.typeinfo import installed_headers, missing_types_message

STRUCTS = (
    "sk_buff",
    "sock",
    "tcp_sock",
    "tcp_skb_cb",
    "tcp_request_sock",
    "tcphdr",
    "sock_exterr_skb",
    "udp_sock",
    "net_device",
    "netdev_rx_queue",
    "net",
    "rtnl_link_ops",
    "cgroup",
    "kernfs_node",
    "task_struct",
    "signal_struct",
    "msghdr",
    "irqaction",
    "socket",
    "css_set",
    "cfs_rq",
    "nsproxy",
    "pt_regs",  # what a kprobe's program gets
)
# (struct, field): each becomes HAVE_<struct>_<field>, since kernels differ in them.
PROBED_FIELDS = (
    ("proto_accept_arg", "is_empty"),  # 6.10+: an argument of accept()
    ("net_device", "priv"),  # 6.10+, netdev_priv() before it: behind the aligned struct
    ("net_device", "xdp_state"),  # 5.9+
    ("netdev_rx_queue", "rps_map"),  # with CONFIG_RPS
    ("tcp_sock", "is_mptcp"),  # 5.6+, with CONFIG_MPTCP
    ("task_struct", "on_cpu"),  # always from 6.17 on, with CONFIG_SMP before it
    ("thread_info", "cpu"),  # 5.16+ (kernel commit bcf9033e5449), in task_struct before it
    ("task_struct", "cpu"),
    ("task_struct", "throttled"),  # 6.18+, with CONFIG_CFS_BANDWIDTH
    ("task_struct", "sched_info"),  # with CONFIG_SCHED_INFO
    ("cfs_rq", "throttled_clock_self_time"),  # 6.6+, with CONFIG_CFS_BANDWIDTH
    ("task_struct", "__state"),  # 5.14+, `state` before it
    ("sock_cgroup_data", "cgroup"),  # 5.16+, a tagged `val` before it
    ("tcp_sock", "tcp_usec_ts"),  # 6.7+: the unit of its time stamps
    ("sched_info", "run_delay"),  # with CONFIG_SCHED_INFO
    ("sock_common", "skc_v6_daddr"),  # with CONFIG_IPV6
)
# (tracepoint, arguments, name): HAVE_<tracepoint>_<name>, where it has as many.
PROBED_ARGUMENTS = (
    ("tcp_retransmit_skb", 3, "err"),  # 6.17+, which also reports failed retransmits
    ("kfree_skb", 4, "rx_sk"),  # 6.11+: the receiving socket
    ("sock_recv_length", 1, "sk"),  # 6.3+
)

_TYPES_H = """\
#pragma once
typedef unsigned char u8, __u8, uint8_t;
typedef unsigned short u16, __u16, uint16_t, __be16, __le16, __sum16;
typedef unsigned int u32, __u32, uint32_t, __be32, __le32, __wsum;
typedef unsigned long long u64, __u64, uint64_t, __be64, __le64;
typedef signed char s8, __s8, int8_t;
typedef short s16, __s16, int16_t;
typedef int s32, __s32, int32_t, pid_t;
typedef long long s64, __s64, int64_t;
typedef _Bool bool;
typedef unsigned long size_t, uintptr_t;
typedef long ssize_t;
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define true 1
#define false 0
#define NULL ((void *)0)
"""
_FILES = {
    "include/linux/kconfig.h": "#pragma once\n#define CONFIG_BPF_SYSCALL 1\n",
    "include/linux/types.h": _TYPES_H,
    "include/uapi/linux/types.h": "#include <linux/types.h>\n",
    "include/linux/version.h": (
        "#pragma once\n#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
        "#define LINUX_VERSION_CODE {version_code}\n"
    ),
    "include/asm/page.h": "#pragma once\n#define PAGE_SIZE {page_size}\n",  # for ring buffers
    "include/linux/log2.h": "#pragma once\n",
    "include/linux/compiler.h": "#pragma once\n",
    "include/uapi/linux/if_packet.h": "#pragma once\n",
    "include/linux/bpf_common.h": "#pragma once\n",
    # bcc brings its own; a second copy would redefine the enums in it
    "include/linux/bpf.h": "",
    "include/uapi/linux/bpf.h": "",
    "include/latencyprobe/kernel_types.h": "#pragma once\n{fields}\n{declarations}\n",
}


class NoKernelTypesError(RuntimeError):
    """A node with neither BTF nor kernel headers. The message names the package to install."""


@dataclass(frozen=True, slots=True)
class KernelSource:
    """The source of the kernel's types: "btf" with a generated tree, or installed "headers"."""

    kind: str
    path: Path


@contextmanager
def kernel_source(types: KernelTypes | None) -> Iterator[KernelSource]:
    """Provide a kernel source for bcc; remove it at the end.

    Raises NoKernelTypesError if the node has neither BTF nor headers.
    """
    if types is not None:
        with temporary_folder("headers") as folder:
            write_tree(folder, types)
            yield KernelSource("btf", folder)
        return
    headers = installed_headers()
    if headers is None:
        raise NoKernelTypesError(missing_types_message())
    yield KernelSource("headers", headers)


def version_code(release: str | None = None) -> int:
    """Return LINUX_VERSION_CODE of a release such as "6.1.0-13-amd64"."""
    numbers = []
    for part in (release or platform.release()).split("-")[0].split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))] or "0"
        numbers.append(int(digits))
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    return (major << 16) + (minor << 8) + min(patch, 255)


def point_bcc_at(source: KernelSource) -> None:
    """Set the environment variables for a generated tree; bcc finds an installed one by itself.

    bcc also needs the version, since our tree has no generated/uapi/linux/version.h.
    """
    if source.kind == "btf":
        os.environ["BCC_KERNEL_SOURCE"] = str(source.path)
        os.environ["BCC_LINUX_VERSION_CODE"] = str(version_code())


def write_tree(folder: Path, types: KernelTypes) -> None:
    """Write the header tree of a kernel with these types."""
    there = [
        f"{struct}_{field}" for struct, field in PROBED_FIELDS if types.has_field(struct, field)
    ]
    there += [
        f"{tracepoint}_{name}"
        for tracepoint, count, name in PROBED_ARGUMENTS
        if types.argument_count(tracepoint) >= count
    ]
    fields = "\n".join(f"#define HAVE_{what} 1" for what in there)
    replacements = {
        "{fields}": fields,
        "{declarations}": types.declarations(STRUCTS),
        "{version_code}": str(version_code()),
        "{page_size}": str(mmap.PAGESIZE),
    }
    for name, template in _FILES.items():
        text = template
        for mark, value in replacements.items():
            text = text.replace(mark, value)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
