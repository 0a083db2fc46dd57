"""The keys of cached objects: equal keys mean that compiling would give the same object."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from latencyprobe import __version__
from latencyprobe.domain.stages import Module
from latencyprobe.process.capabilities import effective_capabilities
from latencyprobe_agent.kernel.abi import MACROS, assertions
from latencyprobe_agent.kernel.btf import VMLINUX
from latencyprobe_agent.kernel.load.object_file import FORMAT
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.sources import source_folder
from latencyprobe_agent.kernel.typeinfo import installed_includes, kernel_types_kind

# The build id of the running kernel, an ELF note (CONFIG_BUILD_SALT and the linker's --build-id).
_NOTES = Path("/sys/kernel/notes")
_BUILD_ID_NOTE = b"\x03\0\0\0GNU\0"  # type NT_GNU_BUILD_ID, name
_LIBRARY = re.compile(r"lib(bcc|LLVM|clang-cpp)\b.*\.so.*")
_KERNEL_PACKAGE = Path(__file__).parents[1]
_CHUNK_BYTES = 1 << 16


def object_key(request: Request) -> str:
    """Return the key of a request's object, in hexadecimal digits.

    What matters for loading only is no part of it: `host_netns`, `complete`.
    """
    parts = {
        "format": FORMAT,
        "version": __version__,
        "kernel": kernel_build(),
        "types": _types(),
        "sources": _digest(_sources()),
        "toolchain": _digest(_toolchain()),
        "capabilities": effective_capabilities(),
        "modules": sorted(request.modules),
        "typed": request.typed,
        "without": sorted(request.without),
        "trace": request.trace,
        "udp": request.udp,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def kernel_build() -> str:
    """Return what identifies this build of the kernel; types and their BTF ids are the build's."""
    uname = platform.uname()
    return f"{uname.release} {uname.version} {uname.machine} {_build_id()}"


def _build_id() -> str:
    """Return a digest of the kernel's notes; of its BTF if they have no build id."""
    try:
        notes = _NOTES.read_bytes()
    except OSError:
        notes = b""
    chunks = [notes] if _BUILD_ID_NOTE in notes else _content(VMLINUX)
    return _digest(chunks)


def _types() -> list[object]:
    """Return the source of the kernel's types, with the time of the headers' installation."""
    kind = kernel_types_kind()
    folders = installed_includes() if kind != "btf" else ()
    return [kind, *((str(path), path.stat().st_mtime_ns) for path in folders)]


def _sources() -> Iterator[bytes]:
    """Yield everything that the object of any request is made of, or by."""
    yield repr(sorted(MACROS.items())).encode()
    yield from (each.encode() for each in assertions(Module, trace=True))
    c_files = (path for path in source_folder().rglob("*.[ch]") if path.is_file())
    for path in (*sorted(c_files), *sorted(_KERNEL_PACKAGE.rglob("*.py"))):
        yield path.name.encode()
        yield from _content(path)


def _toolchain() -> Iterator[bytes]:
    """Yield what identifies bcc and LLVM, without loading them: their files."""
    spec = find_spec("bcc")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        yield from _content(Path(folder, "version.py"))
    for path in sorted(set(_libraries())):
        status = path.stat()
        yield f"{path} {status.st_size} {status.st_mtime_ns}".encode()


def _library_folders() -> tuple[str, ...]:
    multiarch = f"/usr/lib/{platform.machine()}-linux-gnu"
    return (multiarch, "/usr/lib64", "/usr/lib", "/usr/local/lib")


def _libraries() -> Iterator[Path]:
    for folder in _library_folders():
        with suppress(OSError):
            names = sorted(filter(_LIBRARY.fullmatch, os.listdir(folder)))
            yield from (Path(folder, name).resolve(strict=True) for name in names)


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()


def _content(path: Path) -> Iterator[bytes]:
    """Yield a file's content piece by piece; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError:
        return
