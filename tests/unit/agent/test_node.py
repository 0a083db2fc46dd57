"""Which network namespace is the host's."""

from __future__ import annotations

from pathlib import Path

import pytest

from latencyprobe_agent.node import HostNetnsError, host_netns_inode


def test_the_host_is_the_namespace_at_the_given_path() -> None:
    own = Path("/proc/self/ns/net")

    assert host_netns_inode(own) == own.stat().st_ino


def test_a_namespace_that_cannot_be_identified_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(HostNetnsError, match=r"nothing: No such file or directory\. .* hostPID"):
        host_netns_inode(tmp_path / "nothing")
