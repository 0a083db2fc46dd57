"""What a kernel was configured with, as far as the node tells."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from latencyprobe_agent.kernel.load import kconfig
from latencyprobe_agent.kernel.load.kconfig import KernelConfig

CONFIG = b"CONFIG_BPF=y\nCONFIG_TUN=m\n# CONFIG_KPROBES is not set\nCONFIG_HZ=250\n"


@pytest.mark.parametrize("name", ["config.gz", "config-6.1.0"])
def test_an_option_that_is_not_set_is_known_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(CONFIG) if path.suffix == ".gz" else CONFIG)
    monkeypatch.setattr(kconfig, "_PROC", path)
    config = KernelConfig.of_running_kernel()
    assert [
        option
        for option in ("CONFIG_BPF", "CONFIG_TUN", "CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS")
        if config.lacks(option)
    ] == ["CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS"]


@pytest.mark.parametrize("content", [None, b"\x1f\x8b not gzip after all", b"\x1f\x8b"])
def test_a_node_without_its_configuration_blames_no_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "config.gz"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(kconfig, "_PROC", path)
    monkeypatch.setattr("platform.release", lambda: "0.0.0-nowhere")
    assert not KernelConfig.of_running_kernel().lacks("CONFIG_KPROBES")
