"""Errors of calls on maps, of a C library that the test scripts."""

from __future__ import annotations

import ctypes
import errno
from types import SimpleNamespace

import pytest

from latencyprobe_agent.kernel import libbpf

MAP = 7


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The results of the next calls: 0, or an errno."""
    queued: list[int] = []

    def call(*_: object) -> int:
        code = queued.pop(0)
        ctypes.set_errno(code)
        return -code

    library = SimpleNamespace(bpf_map_get_next_key=call, bpf_map_lookup_elem=call)
    monkeypatch.setattr(libbpf, "library", lambda: library)
    return queued


def test_an_entry_that_does_not_exist_is_no_error(answers: list[int]) -> None:
    answers += [0, errno.ENOENT]
    assert libbpf.look_up(MAP, b"key", 4) == bytes(4)
    assert libbpf.look_up(MAP, b"key", 4) is None


def test_the_last_key_is_no_error(answers: list[int]) -> None:
    answers += [0, 0, errno.ENOENT]
    assert len(libbpf.keys(MAP, 4)) == 2


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EAGAIN, errno.EINTR])
def test_an_entry_that_cannot_be_read_now_is_not_taken_for_missing(
    answers: list[int], code: int
) -> None:
    answers += [code, 0, code]
    with pytest.raises(libbpf.KernelRefusedError, match="cannot read an entry"):
        libbpf.look_up(MAP, b"key", 4)
    with pytest.raises(libbpf.KernelRefusedError, match="cannot read the keys of a map"):
        libbpf.keys(MAP, 4)
