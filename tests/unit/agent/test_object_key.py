"""An object's key changes with everything that compiling depends on, and with nothing else."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from latencyprobe_agent.kernel import sources
from latencyprobe_agent.kernel.abi import MACROS
from latencyprobe_agent.kernel.load import key as keys
from latencyprobe_agent.kernel.load.key import object_key
from latencyprobe_agent.kernel.request import Request

REQUEST = Request(("rx", "tx"), 4026531840)


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, modules=("rx",)),
        replace(REQUEST, trace=True),
        replace(REQUEST, udp=False),
        replace(REQUEST, typed=False),
        replace(REQUEST, without=("kprobe/tcp_sendmsg",)),
    ],
)
def test_the_request_is_part_of_the_key(other: Request) -> None:
    assert object_key(other) != object_key(REQUEST)


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, host_netns=1),
        replace(REQUEST, complete=True),
        replace(REQUEST, modules=("tx", "rx")),
    ],
)
def test_settings_of_loading_alone_are_no_part_of_the_key(other: Request) -> None:
    assert object_key(other) == object_key(REQUEST)


@pytest.fixture
def toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of LLVM."""
    library = tmp_path / "libLLVM-14.so.1"
    library.write_bytes(b"14")
    monkeypatch.setattr(keys, "_library_folders", lambda: (str(tmp_path), "/nowhere"))
    return library


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's notes, with a build id."""
    path = tmp_path / "notes"
    path.write_bytes(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0" + bytes(20))
    monkeypatch.setattr(keys, "_NOTES", path)
    return path


@pytest.fixture
def btf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"types")
    monkeypatch.setattr(keys, "VMLINUX", path)
    return path


Patch = Callable[[pytest.MonkeyPatch], None]


def _patch_uname(**parts: str) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        uname = platform.uname()._replace(**parts)
        monkeypatch.setattr(platform, "uname", lambda: uname)

    return patch


@pytest.mark.parametrize(
    "patch",
    [
        _patch_uname(release="6.18.45"),
        _patch_uname(version="#2 SMP"),
        _patch_uname(machine="aarch64"),
        lambda monkeypatch: monkeypatch.setattr(keys, "effective_capabilities", lambda: 1),
        lambda monkeypatch: monkeypatch.setattr(keys, "kernel_types_kind", lambda: "headers"),
        lambda monkeypatch: monkeypatch.setattr(keys, "__version__", "0.0.0"),
        lambda monkeypatch: monkeypatch.setattr(keys, "FORMAT", 0),
        lambda monkeypatch: monkeypatch.setattr(keys, "MACROS", {**MACROS, "MAX_SLOTS": 1}),
    ],
)
def test_kernel_capabilities_types_and_versions_are_part_of_it(
    monkeypatch: pytest.MonkeyPatch, patch: Patch
) -> None:
    before = object_key(REQUEST)
    patch(monkeypatch)
    assert object_key(REQUEST) != before


def test_another_build_of_the_same_kernel_version_has_another_key(notes: Path, btf: Path) -> None:
    before = object_key(REQUEST)
    btf.write_bytes(b"other types")
    assert object_key(REQUEST) == before  # the build id says enough
    notes.write_bytes(notes.read_bytes()[:-1] + b"\1")
    assert object_key(REQUEST) != before


@pytest.mark.parametrize("content", [None, b"no build id"])
def test_without_a_build_id_the_types_distinguish_builds(
    notes: Path, btf: Path, content: bytes | None
) -> None:
    notes.unlink() if content is None else notes.write_bytes(content)
    before = object_key(REQUEST)
    btf.write_bytes(b"other types")
    assert object_key(REQUEST) != before


def test_another_llvm_has_another_key(toolchain: Path) -> None:
    before = object_key(REQUEST)
    (toolchain.parent / "libz.so.1").write_bytes(b"")
    assert object_key(REQUEST) == before
    toolchain.write_bytes(b"15.0")
    assert object_key(REQUEST) != before


def test_a_changed_c_file_has_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "x.bpf.c"
    file.write_text("int x;")
    (tmp_path / "README.md").write_text("")
    monkeypatch.setattr(keys, "source_folder", lambda: tmp_path)
    before = object_key(REQUEST)
    (tmp_path / "README.md").write_text("more")
    assert object_key(REQUEST) == before
    file.write_text("int y;")
    assert object_key(REQUEST) != before


def test_every_process_has_the_same_key() -> None:
    code = (
        "from latencyprobe_agent.kernel.load.key import object_key\n"
        "from latencyprobe_agent.kernel.request import Request\n"
        "print(object_key(Request(('rx', 'tx'), 1)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {object_key(REQUEST)}


def test_computing_it_loads_neither_bcc_nor_llvm() -> None:
    code = (
        "from latencyprobe_agent.kernel.load.key import object_key\n"
        "from latencyprobe_agent.kernel.request import Request\n"
        "object_key(Request(('rx',), 1))\n"
        "import sys; assert 'bcc' not in sys.modules\n"
        "assert 'LLVM' not in open('/proc/self/maps').read()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_c_sources_are_found() -> None:
    assert (sources.source_folder() / "latencyprobe.bpf.c").is_file()
