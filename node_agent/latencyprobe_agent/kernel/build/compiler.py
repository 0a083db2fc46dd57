"""The compiler process: compiles one object, hands it over, and exits.

bcc holds LLVM (100 MB resident once it has compiled). That memory goes with this short-lived
process. `python -m latencyprobe_agent.kernel.build.compiler FD [BYTES]`, with a SOCK_SEQPACKET
socket as FD: one JSON request in, one JSON answer out. Beside the answer (SCM_RIGHTS) is a file in
memory with the encoded object.

LLVM uses one CPU. So a child of this process compiles half of the programs, where there are two.

With BYTES, all data of these processes has this bound: an allocation beyond it fails, and LLVM ends
the process. It is RLIMIT_DATA, 4.7+. The data of a compilation is 0.9 of its anonymous memory. Its
address space is four times that, most of it files.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import resource
import signal
import socket
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from latencyprobe.domain.stages import Module
from latencyprobe.process.os_errors import explained
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import ADDRESSED_MAPS, SOCKET_STORAGES
from latencyprobe_agent.kernel.btf import KernelTypes, NoBtfError
from latencyprobe_agent.kernel.build.drops import drop_reasons
from latencyprobe_agent.kernel.build.facts import fact_macros, type_numbers
from latencyprobe_agent.kernel.build.headers import (
    NoKernelTypesError,
    kernel_source,
    point_bcc_at,
    version_code,
)
from latencyprobe_agent.kernel.build.references import UnknownReferenceError, symbolic
from latencyprobe_agent.kernel.build.source import compose, of_programs, share_out
from latencyprobe_agent.kernel.compiled import CompiledObject, MapDefinition, Program
from latencyprobe_agent.kernel.hooks import events_of
from latencyprobe_agent.kernel.load.object_file import encode
from latencyprobe_agent.kernel.load.reach import Reach
from latencyprobe_agent.kernel.request import MESSAGE_BYTES, Answer, Request
from latencyprobe_agent.kernel.typeinfo import installed_includes

# The first version whose tracing programs may use bpf_sk_storage_get(): kernel commit 8e4597c627fb.
TYPED_SINCE = (5 << 16) + (11 << 8)
_DIAGNOSTIC_LINES = 80
# Structs may hold another one without naming the member (`struct ns_tree;` in struct ns_common), as
# kernels do that are compiled with -fms-extensions: 6.19+, Makefile. Without it such a member is
# left out, and all that follows has a wrong offset.
C_DIALECT = ("-fms-extensions", "-Wno-microsoft-anon-tag")
# A quarter of the time to compile is for debug information, by default. bcc has LLVM optimize what
# clang has optimized: a third of the time. Kernels are compiled without strict aliasing, too.
_C_OPTIONS = (
    *C_DIALECT,
    "-g0",
    *("-Xclang", "-disable-llvm-passes"),
    "-fno-strict-aliasing",
)
# Parsing takes half a second, which each half of the programs needs for itself.
_FEW_PROGRAMS = 8
# Each half takes up to 66 MiB of data. Below this, one process may have all that there is.
_ENOUGH_DATA_BYTES = 110 << 20
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


class CompileError(RuntimeError):
    """A C source that does not compile. The message quotes the compiler."""


class NoRingBufferError(RuntimeError):
    """A kernel that is too old to report single packets."""

    def __init__(self) -> None:
        super().__init__(
            f"cannot trace packets: kernel {platform.release()} has no BPF ring buffer, which "
            "requires Linux 5.8 or newer"
        )


@dataclass(frozen=True, slots=True)
class _Code:
    """A compiled source: its programs by function, and its maps."""

    programs: Mapping[str, Program]
    maps: tuple[MapDefinition, ...]


def build(request: Request, *, processes: int = 1) -> CompiledObject:
    """Compile the programs of a request for the running kernel.

    `processes`: 2 to compile half of them in a child of this process, which must have one thread.
    """
    if request.trace and not libbpf.has_ring_buffers():
        raise NoRingBufferError
    if processes > 1:
        import bcc  # noqa: F401, PLC0415 - the child shares its pages; see _compile
    types = _kernel_types()
    reasons = drop_reasons(types, installed_includes())
    with kernel_source(types) as tree:
        point_bcc_at(tree)
        return _build(request, types, reasons, processes)


def _build(
    request: Request, types: KernelTypes | None, reasons: list[str], processes: int = 1
) -> CompiledObject:
    typed = types is not None and request.typed and version_code() >= TYPED_SINCE
    modules = tuple(Module(name) for name in request.modules)
    events = events_of(modules, udp=request.udp)
    numbers = type_numbers(events, types) if types is not None and typed else None
    reach = Reach(numbers, request.without)
    functions = reach.functions(events, first_only=not request.complete)
    source = compose(
        modules,
        from_btf=types is not None,
        typed=typed,
        functions=functions,
        trace=request.trace,
        facts=fact_macros(events, reach, types, reasons),
    )
    compile_ = _compile_by_two if processes > 1 and len(functions) > _FEW_PROGRAMS else _compile
    code = compile_(source, sorted(functions))
    maps = tuple(map(_as_storage, code.maps)) if typed else code.maps
    return CompiledObject(code.programs, maps, functions, numbers, tuple(reasons))


def _as_storage(bcc_map: MapDefinition) -> MapDefinition:
    """Return the map of SOCKET_STORAGE (bpf/include/sockets.h), of which bcc makes a hash."""
    if bcc_map.name not in SOCKET_STORAGES:
        return bcc_map
    return replace(bcc_map, type=libbpf.MAP_TYPE_SK_STORAGE, max_entries=0)


def _kernel_types() -> KernelTypes | None:
    try:
        return KernelTypes()
    except NoBtfError:
        return None


def _compile_by_two(source: str, functions: Sequence[str]) -> _Code:
    """Compile these programs of a source, half of them in a child process."""
    ours, theirs = share_out(source, functions)
    forking = get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)
    child = forking.Process(target=_compile_in_child, args=(sender, source, theirs, os.getpid()))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (most // 2, most))  # the child has the same
    with receiver:
        child.start()
        sender.close()
        try:
            code = _compile(source, ours)
            try:
                other = receiver.recv()
            except EOFError:  # it failed: as this does, unless it had no memory
                resource.setrlimit(resource.RLIMIT_DATA, (most, most))
                other = _compile(source, theirs)
        finally:
            child.kill()
            child.join()
    if other.maps != code.maps:
        raise CompileError("the two halves of the programs have different maps")
    return _Code({**code.programs, **other.programs}, code.maps)


def _compile_in_child(
    sender: Connection, source: str, functions: Sequence[str], parent: int
) -> None:
    """Send the compiled programs to the parent process, or nothing if that fails."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    os.dup2(os.memfd_create("diagnostics"), 2)  # the parent reports
    if os.getppid() == parent:
        with suppress(CompileError, UnknownReferenceError):
            sender.send(_compile(source, functions))


def _compile(source: str, functions: Sequence[str]) -> _Code:
    """Compile these programs of a source, and no other."""
    with _captured_stderr() as diagnostics:
        from bcc import BPF  # noqa: PLC0415 - LLVM's memory belongs to this call's process alone

        try:
            compiled = BPF(text=of_programs(source, functions), cflags=list(_C_OPTIONS))
        except Exception as error:  # bcc raises bare Exception
            tail = "\n".join(diagnostics().strip().splitlines()[-_DIAGNOSTIC_LINES:])
            raise CompileError(f"{error}\n{tail}") from error
    try:
        return _code_of(compiled, functions)
    finally:
        compiled.cleanup()  # closes the maps


def _code_of(compiled: Any, functions: Sequence[str]) -> _Code:
    maps = _maps_of(compiled)
    places = {descriptor: place for place, descriptor in enumerate(maps)}
    addressed = {
        each.name: place for place, each in enumerate(maps.values()) if each.name in ADDRESSED_MAPS
    }
    there = _compiled_functions(compiled)
    programs = {
        name: symbolic(name, compiled.dump_func(name), places, addressed)
        for name in functions
        if name in there
    }
    return _Code(programs, tuple(maps.values()))


def _compiled_functions(compiled: Any) -> set[str]:
    """Return the compiled functions; some are only for kernels with, or without, BTF."""
    from bcc.libbcc import lib  # noqa: PLC0415 - see _compile

    count = lib.bpf_num_functions(compiled.module)
    return {lib.bpf_function_name(compiled.module, index).decode() for index in range(count)}


def _maps_of(compiled: Any) -> dict[int, MapDefinition]:
    """Return the definitions of bcc's maps by their descriptors, as the kernel describes them."""
    from bcc.libbcc import lib  # noqa: PLC0415 - see _compile

    module = ctypes.c_void_p(compiled.module)
    lib.bpf_table_name.restype = ctypes.c_char_p
    found: dict[int, MapDefinition] = {}
    for index in map(ctypes.c_size_t, range(lib.bpf_num_tables(module))):
        descriptor = lib.bpf_table_fd_id(module, index)
        info = libbpf.map_info(descriptor)
        found[descriptor] = MapDefinition(
            name=lib.bpf_table_name(module, index).decode(),
            type=info.type,
            key_bytes=info.key_size,
            value_bytes=info.value_size,
            max_entries=info.max_entries,
            flags=info.map_flags,
        )
    return found


@contextmanager
def _captured_stderr() -> Iterator[Any]:
    """Capture the standard error of native code; yield a function that reads it.

    The agent's file for it is used as it is: it has what LLVM writes before it ends this process.
    """
    if _is_readable_file(2):
        begin = os.fstat(2).st_size
        yield lambda: os.pread(2, os.fstat(2).st_size - begin, begin).decode(errors="replace")
        return
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


def _is_readable_file(descriptor: int) -> bool:
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    return mode == os.O_RDWR and stat.S_ISREG(os.fstat(descriptor).st_mode)


def main() -> None:
    """Serve one request on the socket whose descriptor is the first argument."""
    if len(sys.argv) > 2:
        _limit_data(int(sys.argv[2]))
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        _serve(channel)


def _limit_data(bound: int) -> None:
    """Let allocations of this process fail beyond this bound, unless they fail before."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    least = bound if most == resource.RLIM_INFINITY else min(bound, most)
    resource.setrlimit(resource.RLIMIT_DATA, (least, least))


def _processes() -> int:
    """Return the number of processes to compile with: two where CPUs and memory are enough."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    is_enough = most == resource.RLIM_INFINITY or most >= 2 * _ENOUGH_DATA_BYTES
    return min(2 if is_enough else 1, len(os.sched_getaffinity(0)))


def _serve(channel: socket.socket) -> None:
    request = Request(**json.loads(channel.recv(MESSAGE_BYTES)))
    content = b""
    answer = Answer()
    try:
        content = encode(build(request, processes=_processes()))
    except (
        NoKernelTypesError,
        CompileError,
        UnknownReferenceError,
        NoRingBufferError,
        libbpf.LibbpfMissingError,
    ) as error:
        answer = Answer(error=str(error))
    except OSError as error:
        answer = Answer(error=f"cannot build the eBPF programs: {explained(error)}")
    except Exception as error:  # noqa: BLE001 - the agent decides how to handle it
        answer = Answer(error=f"{type(error).__name__}: {error}")
    with open(os.memfd_create("object"), "w+b") as file:
        file.write(content)
        file.flush()
        socket.send_fds(channel, [json.dumps(asdict(answer)).encode()], [file.fileno()])


if __name__ == "__main__":
    main()
