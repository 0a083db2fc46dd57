"""No wait of the product loses a cancellation."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("latencyprobe", "node_agent", "operator")


def test_waits_have_time_limits_that_keep_cancellations() -> None:
    """asyncio.wait_for() of Python 3.11 returns a result where it was cancelled at its end."""
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "asyncio.wait_for"
    ]

    assert not calls
