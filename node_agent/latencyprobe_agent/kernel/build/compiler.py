"""The compiler process: compiles, loads and attaches, hands the descriptors over, and exits.

bcc holds LLVM (100 MB resident once it has compiled). That memory goes with this short-lived
process; the agent keeps the descriptors, which is all that keeps programs and maps alive.
`python -m latencyprobe_agent.kernel.build.compiler FD`, with a SOCK_SEQPACKET socket as FD: one
JSON request in, one JSON answer out, the descriptors beside it (SCM_RIGHTS).
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from latencyprobe.domain.stages import Module
from latencyprobe.process.os_errors import explained
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import map_names
from latencyprobe_agent.kernel.btf import KernelTypes, NoBtfError
from latencyprobe_agent.kernel.build.drops import drop_macros, drop_reasons
from latencyprobe_agent.kernel.build.headers import (
    NoKernelTypesError,
    kernel_source,
    point_bcc_at,
    version_code,
)
from latencyprobe_agent.kernel.build.source import compose
from latencyprobe_agent.kernel.hooks import events_of
from latencyprobe_agent.kernel.load.loader import Loader
from latencyprobe_agent.kernel.load.reach import Reach
from latencyprobe_agent.kernel.load.variables import macros
from latencyprobe_agent.kernel.request import MESSAGE_BYTES, Answer, Request
from latencyprobe_agent.kernel.typeinfo import installed_includes

# The first version whose tracing programs may use bpf_sk_storage_get(): kernel commit 8e4597c627fb.
TYPED_SINCE = (5 << 16) + (11 << 8)
_DIAGNOSTIC_LINES = 80
# Structs may hold another one without naming the member (`struct ns_tree;` in struct ns_common), as
# kernels do that are compiled with -fms-extensions: 6.19+, Makefile. Without it such a member is
# left out, and all that follows has a wrong offset.
_C_DIALECT = ("-fms-extensions", "-Wno-microsoft-anon-tag")


class CompileError(RuntimeError):
    """A C source that does not compile. The message quotes the compiler."""


class NoRingBufferError(RuntimeError):
    """A kernel that is too old to report single packets."""

    def __init__(self) -> None:
        super().__init__(
            f"cannot trace packets: kernel {platform.release()} has no BPF ring buffer, which "
            "requires Linux 5.8 or newer"
        )


@dataclass(slots=True)
class _Object:
    """A compiled source: its code by function, and its maps."""

    code: Mapping[str, bytes]
    maps: Mapping[str, int]
    owner: Any  # the bcc object: its end would close the maps


def build(request: Request) -> tuple[Answer, list[int]]:
    """Compile, load and attach; return the answer and its descriptors."""
    if request.trace and not libbpf.has_ring_buffers():
        raise NoRingBufferError
    types = _kernel_types()
    reasons = drop_reasons(types, installed_includes())
    with kernel_source(types) as tree:
        point_bcc_at(tree)
        compiled, loader = _load(request, types, reasons)
    answer = Answer(
        maps=list(compiled.maps),
        programs=list(loader.programs),
        attached=loader.attached,
        refused=loader.refused,
        drop_reasons=reasons,
    )
    return answer, [*compiled.maps.values(), *loader.programs.values(), *loader.links]


def _load(
    request: Request, types: KernelTypes | None, reasons: list[str]
) -> tuple[_Object, Loader]:
    """Compile and attach the first choices; if one is refused, compile the alternatives too."""
    typed = types is not None and request.typed and version_code() >= TYPED_SINCE
    modules = tuple(Module(name) for name in request.modules)
    events = events_of(modules, udp=request.udp)
    reach = Reach(types if typed else None, request.without)
    everything = reach.functions(events, first_only=False)
    functions = reach.functions(events, first_only=True)
    while True:
        source = compose(
            modules,
            host_netns=request.host_netns,
            from_btf=types is not None,
            typed=typed,
            functions=functions,
            trace=request.trace,
            facts={**drop_macros(reasons), **macros(reach.variables(), reach.types)},
        )
        compiled = _compile(source, sorted(functions), map_names(modules, trace=request.trace))
        loader = Loader(compiled.code, reach.types, without=request.without)
        for event in events:
            loader.attach(event)
        refused = [event for event in events if event.name in loader.refused]
        if reach.functions(refused, first_only=False) <= functions:
            return compiled, loader
        loader.detach()
        functions = everything


def _kernel_types() -> KernelTypes | None:
    try:
        return KernelTypes()
    except NoBtfError:
        return None


def _compile(source: str, functions: list[str], maps: tuple[str, ...]) -> _Object:
    with _captured_stderr() as diagnostics:
        from bcc import BPF  # noqa: PLC0415 - LLVM's memory belongs to this call's process alone

        try:
            compiled = BPF(text=source, cflags=list(_C_DIALECT))
        except Exception as error:  # bcc raises bare Exception
            tail = "\n".join(diagnostics().strip().splitlines()[-_DIAGNOSTIC_LINES:])
            raise CompileError(f"{error}\n{tail}") from error
    there = _compiled_functions(compiled)
    code = {name: compiled.dump_func(name) for name in functions if name in there}
    return _Object(code, _map_descriptors(compiled, maps), compiled)


def _compiled_functions(compiled: Any) -> set[str]:
    """Return the compiled functions; some are only for kernels with, or without, BTF."""
    from bcc.libbcc import lib  # noqa: PLC0415 - see _compile

    count = lib.bpf_num_functions(compiled.module)
    return {lib.bpf_function_name(compiled.module, index).decode() for index in range(count)}


def _map_descriptors(compiled: Any, names: tuple[str, ...]) -> dict[str, int]:
    from bcc.libbcc import lib  # noqa: PLC0415 - see _compile

    return {name: lib.bpf_table_fd(compiled.module, name.encode()) for name in names}


@contextmanager
def _captured_stderr() -> Iterator[Any]:
    """Capture the standard error of native code; yield a function that reads it."""
    # In memory: the disk may be full.
    with open(os.memfd_create("diagnostics"), "w+b", buffering=0) as sink:
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)

        def read() -> str:
            sink.seek(0)
            return sink.read().decode(errors="replace")

        try:
            yield read
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def main() -> None:
    """Serve one request on the socket whose descriptor is the first argument."""
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        _serve(channel)


def _serve(channel: socket.socket) -> None:
    request = Request(**json.loads(channel.recv(MESSAGE_BYTES)))
    descriptors: list[int] = []
    try:
        answer, descriptors = build(request)
    except (
        NoKernelTypesError,
        CompileError,
        NoRingBufferError,
        libbpf.LibbpfMissingError,
    ) as error:
        answer = Answer(error=str(error))
    except OSError as error:
        answer = Answer(error=f"cannot build the eBPF programs: {explained(error)}")
    except Exception as error:  # noqa: BLE001 - the agent decides how to handle it
        answer = Answer(error=f"{type(error).__name__}: {error}")
    socket.send_fds(channel, [json.dumps(asdict(answer)).encode()], descriptors)


if __name__ == "__main__":
    main()
