"""Compiled objects that the live tests keep for their next run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from latencyprobe_agent.kernel.load import key as keys
from latencyprobe_agent.kernel.request import Request
from tests.live.kept_objects import KeptObjects

REQUEST = Request(("rx", "tx"), 0)
OTHER = replace(REQUEST, modules=("tcp",))


def test_an_object_serves_the_next_run(tmp_path: Path) -> None:
    KeptObjects(tmp_path / "objects").write(REQUEST, b"programs")
    assert KeptObjects(tmp_path / "objects").read(REQUEST) == b"programs"


@pytest.mark.parametrize("other", [OTHER, replace(REQUEST, complete=True)])
def test_it_does_not_serve_another_request(tmp_path: Path, other: Request) -> None:
    kept = KeptObjects(tmp_path)
    kept.write(REQUEST, b"programs")
    assert kept.read(other) is None


def test_it_does_not_serve_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptObjects(tmp_path)
    kept.write(REQUEST, b"programs")
    monkeypatch.setattr(keys, "_sources", lambda: [b"another version"])
    assert kept.read(REQUEST) is None


def test_a_damaged_object_is_not_used(tmp_path: Path) -> None:
    kept = KeptObjects(tmp_path)
    kept.write(REQUEST, b"programs")
    (path,) = tmp_path.glob("*/*")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert kept.read(REQUEST) is None
    kept.write(REQUEST, b"programs")
    assert kept.read(REQUEST) == b"programs"


def test_the_object_that_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    kept = KeptObjects(tmp_path, most=2)
    for request in (REQUEST, OTHER):
        kept.write(request, b"programs")
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    assert kept.read(REQUEST) is not None
    kept.write(replace(OTHER, trace=True), b"programs")
    assert kept.read(OTHER) is None
    assert kept.read(REQUEST) is not None
