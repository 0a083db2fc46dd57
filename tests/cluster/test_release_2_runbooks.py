"""The commands of the pages for the person on call are understood, and print what there is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.shop import LIVE, Shop

DOCS = Path(__file__).parents[2] / "docs"
# Those that look and change nothing. A container that was never restarted has no log before.
_LOOK = re.compile(r"kubectl (--namespace \S+ )?(get|describe|logs|explain) (?!.*--previous)")
# Of a healthy release these have nothing to print.
_MAY_BE_EMPTY = re.compile(r"\| grep|--since|terminated|bottleneck=")


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page that look at the cluster, each with its continuation lines."""
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for command in re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.MULTILINE):
            if _LOOK.match(command):
                yield command


COMMANDS = {
    f"{name}: {command}": command
    for name in ("alerts.md", "troubleshooting.md", "api.md")
    for command in commands(DOCS / name)
}


def test_each_page_has_commands() -> None:
    pages = [name.partition(":")[0] for name in COMMANDS]
    assert min(map(pages.count, ("alerts.md", "troubleshooting.md", "api.md"))) >= 4


@pytest.fixture(scope="module")
def measured(shop: Shop) -> Shop:
    """The probe LIVE has a whole status."""
    shop.wait_until_both_nodes_report()
    return shop


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_the_docs_runs_and_prints(measured: Shop, name: str) -> None:
    node, agent = next(iter(measured.release.agents().items()))
    own = f"--namespace {measured.namespace}"
    command = COMMANDS[name]
    for words, meant in (
        ("NAMESPACE", measured.namespace),
        ("PROBE", LIVE),
        ("latencyprobe checkout", f"latencyprobe {LIVE} {own}"),
        ("get latencyprobes -", f"get latencyprobes {own} -"),
        ("NODE", node),
        ("POD", agent["metadata"]["name"]),
    ):
        command = command.replace(words, meant)

    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=measured.cluster.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    may_be_empty = _MAY_BE_EMPTY.search(command) is not None
    if ".status.nodes" in command:  # those that are covered are not listed
        may_be_empty = not measured.status().get("nodes")
    assert ran.returncode == 0 or (may_be_empty and "| grep" in command), ran.stderr
    assert ran.stdout.strip() or may_be_empty, command
    assert not ran.stderr or (may_be_empty and ran.stderr.startswith("No resources found"))
