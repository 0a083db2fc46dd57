"""Where the kernel's types come from, and what is said where they come from nowhere."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from latencyprobe_agent.kernel.build import headers
from latencyprobe_agent.kernel.build.headers import (
    KernelSource,
    NoKernelTypesError,
    kernel_source,
    point_bcc_at,
    version_code,
)
from latencyprobe_agent.kernel.typeinfo import installed_headers


def install(modules: Path, part: str) -> Path:
    """A header package's kconfig.h, in this half of the running kernel's folder."""
    kconfig = modules / platform.release() / part / "include" / "linux" / "kconfig.h"
    kconfig.parent.mkdir(parents=True)
    kconfig.touch()
    return modules / platform.release() / "build"


@pytest.mark.parametrize("part", ["build", "source"])
def test_headers_are_found_in_one_tree_or_in_debians_two(tmp_path: Path, part: str) -> None:
    assert installed_headers(tmp_path) is None
    assert install(tmp_path, part) == installed_headers(tmp_path)


def test_without_btf_and_headers_the_package_to_install_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(headers, "installed_headers", lambda: None)
    with (
        pytest.raises(NoKernelTypesError, match=f"linux-headers-{platform.release()}"),
        kernel_source(None),
    ):
        pass


def test_without_btf_installed_headers_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(headers, "installed_headers", lambda: tmp_path)
    with kernel_source(None) as source:
        assert source == KernelSource("headers", tmp_path)


@pytest.mark.parametrize(
    ("kind", "expected"), [("btf", "/tree"), ("headers", None)], ids=["made", "installed"]
)
def test_bcc_gets_the_path_of_a_made_tree_and_finds_an_installed_one_itself(
    monkeypatch: pytest.MonkeyPatch, kind: str, expected: str | None
) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    monkeypatch.setenv("BCC_LINUX_VERSION_CODE", "0")
    point_bcc_at(KernelSource(kind, Path("/tree")))
    assert os.environ.get("BCC_KERNEL_SOURCE") == expected
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)


@pytest.mark.parametrize(
    ("release", "code"),
    [
        ("6.1.0-13-amd64", 0x060100),
        ("6.18.44-fc-v657", 0x06122C),
        ("5.10.223+", 0x050ADF),
        ("6.12", 0x060C00),
        ("4.19.325", 0x0413FF),
    ],
)
def test_a_release_becomes_a_version_code(release: str, code: int) -> None:
    assert version_code(release) == code
