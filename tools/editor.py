"""The files by which an editor opens the C sources: `make editor` writes them into build/.

The agent compiles one text: bcc's C headers, macros, the kernel's types, and the files of bpf/.
An editor opens one file alone. So each file has a command of its own in compile_commands.json,
which includes all that precedes the file in that text. clangd finds that file in build/ by itself.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import MACROS
from latencyprobe_agent.kernel.btf import KernelTypes, NoBtfError
from latencyprobe_agent.kernel.build.compiler import C_DIALECT
from latencyprobe_agent.kernel.build.drops import drop_reasons
from latencyprobe_agent.kernel.build.facts import fact_macros, type_numbers
from latencyprobe_agent.kernel.build.headers import write_tree
from latencyprobe_agent.kernel.build.source import INCLUDE, UNIT, definitions, selections
from latencyprobe_agent.kernel.hooks import events_of
from latencyprobe_agent.kernel.load.reach import Reach
from latencyprobe_agent.kernel.sources import source_folder
from latencyprobe_agent.kernel.typeinfo import installed_includes

BUILD = Path(__file__).parents[1] / "build"
_BCC = "libbcc.so.0"
# Texts in bcc's library (src/cc/exported_files.cc), each with the macro that guards it.
_BCC_HEADERS = {
    "bpf.h": "_UAPI__LINUX_BPF_H__",
    "bpf_workaround.h": "__HAVE_BUILTIN_BSWAP16__",
    "helpers.h": "__BPF_HELPERS_H",
}
# bcc's own options: src/cc/frontends/clang/loader.cc and kbuild_helper.cc. The dialect is the
# default of the clang in it; in C23 `bool` is no name for a type.
_OPTIONS = (
    *("-x", "c", "-std=gnu17", *C_DIALECT, "-nostdinc", "-D__KERNEL__", "-D__BPF_TRACING__"),
    "-Wno-deprecated-declarations",
    "-Wno-gnu-variable-sized-type-not-at-end",
    "-Wno-address-of-packed-member",
    "-Wno-unknown-warning-option",
    "-Wno-unused-value",
    "-Wno-pointer-sign",
)
# A file may declare a function that a later file defines.
_OF_A_PART = ("-Wno-undefined-internal",)


def write_project(folder: Path) -> None:
    """Write compile_commands.json and the headers of its commands, for the running kernel.

    Raises NoBtfError if the kernel has no BTF.
    """
    types = KernelTypes()
    made = folder / "editor"
    shutil.rmtree(made, ignore_errors=True)
    write_tree(made, types)
    _write(made / "constants.h", "\n".join([*definitions(_macros(types)), ""]))
    library = _bcc_library()
    for name, guard in _BCC_HEADERS.items():
        _write(made / "bcc" / name, bcc_header(library, guard))
    commands = list(_commands(made))
    _write(folder / "compile_commands.json", json.dumps(commands, indent=1))


def bcc_header(library: bytes, guard: str) -> str:
    """Return the C header in bcc's library that this macro guards; raise LookupError without it."""
    begin = library.find(f"#ifndef {guard}\n".encode())
    if begin < 0:
        raise LookupError(f"cannot read the C headers of bcc: {_BCC} has none with {guard}")
    return library[begin : library.index(b"\0", begin)].decode()


def _bcc_library() -> bytes:
    ctypes.CDLL(_BCC)
    mappings = Path("/proc/self/maps").read_text().splitlines()
    paths = [line[line.index("/") :] for line in mappings if "/libbcc.so" in line]
    if not paths:
        raise LookupError(f"{_BCC} is loaded, and no mapping of it has a path")
    return Path(paths[0]).read_bytes()


def _macros(types: KernelTypes) -> dict[str, int | str]:
    """Return the macros that the agent defines; the unit itself selects all modules."""
    events = events_of(Module)
    reach = Reach(type_numbers(events, types))
    return {
        **MACROS,
        **fact_macros(events, reach, types, drop_reasons(types, installed_includes())),
        **selections(reach.functions(events, first_only=False)),
    }


def _commands(made: Path) -> Iterator[dict[str, object]]:
    """Yield the entries of compile_commands.json; write what precedes each file."""
    sources = source_folder()
    bcc = [made / "bcc" / name for name in _BCC_HEADERS]
    options = [
        *_OPTIONS,
        *("-iquote", str(sources), f"-I{made / 'include'}"),
        *_included("linux/kconfig.h", *bcc, made / "constants.h"),
    ]
    yield _command(sources / UNIT, options)
    unit = (sources / UNIT).read_text()
    names = INCLUDE.findall(unit)
    for place, name in enumerate(names):
        context = made / "before" / name
        _write(context, _up_to(unit, names[:place]))
        yield _command(sources / name, [*options, *_OF_A_PART, *_included(context)])


def _up_to(unit: str, names: list[str]) -> str:
    """Return the unit with these of its includes alone."""
    return INCLUDE.sub(lambda found: found[0] if found[1] in names else "", unit)


def _included(*headers: str | Path) -> list[str]:
    return [part for header in headers for part in ("-include", str(header))]


def _command(path: Path, options: list[str]) -> dict[str, object]:
    arguments = ["clang", *options, str(path)]
    return {"directory": str(path.parent), "file": str(path), "arguments": arguments}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def main() -> None:
    """Write the files into the folder that is the first argument, or into build/."""
    folder = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else BUILD
    try:
        write_project(folder)
    except (NoBtfError, LookupError, OSError) as error:
        raise SystemExit(f"editor: {error}") from error
    print(f"editor: wrote {folder / 'compile_commands.json'}, by which clangd opens bpf/")


if __name__ == "__main__":
    main()
