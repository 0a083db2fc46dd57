"""gRPC ignores an option whose name it does not know: each name of ours is one of its own."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("latencyprobe", "node_agent", "operator", "bench", "tools")
OPTION = re.compile(r'"(grpc\.[a-z0-9_.]+)"')


def options() -> set[str]:
    """The names of all options that we set."""
    return {
        name
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in OPTION.findall(path.read_text())
    }


def test_grpc_knows_every_option_that_we_set() -> None:
    library = find_spec("grpc._cython.cygrpc")
    assert library is not None
    assert library.origin is not None
    names, known = options(), Path(library.origin).read_bytes()

    assert "grpc.max_receive_message_length" in names
    assert len(names) > 10
    assert [name for name in sorted(names) if name.encode() + b"\0" not in known] == []
