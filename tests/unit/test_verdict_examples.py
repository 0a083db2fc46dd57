"""docs/verdicts.md has an example of each verdict, as the rules give it today.

`LATENCYPROBE_WRITE_GOLDEN=1` writes them again.
"""

from __future__ import annotations

import os

from latencyprobe.domain.causes import Bottleneck
from tests.unit.verdict_examples import documented, examples, verdicts, write


def test_each_verdict_has_an_example_of_its_own() -> None:
    found = list(verdicts())
    assert [cause for cause, _, verdict in found if verdict.bottleneck is not cause] == []
    assert {cause for cause, *_ in found} == set(Bottleneck)


def test_the_document_has_the_examples() -> None:
    if os.environ.get("LATENCYPROBE_WRITE_GOLDEN"):
        write()
    assert documented().strip("\n") == examples().strip("\n")
