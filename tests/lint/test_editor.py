"""Every C file opens in an editor: clangd finds no error in it, and finds those that are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latencyprobe_agent.kernel.btf import VMLINUX
from tools.editor import bcc_header

ROOT = Path(__file__).parents[2]
CLANGD = Path(sys.executable).parent / "clangd"
SOURCES = sorted((ROOT / "bpf").rglob("*.[ch]"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the files that `make editor` writes."""
    if not VMLINUX.is_file():
        pytest.skip("needs BTF")
    folder = tmp_path_factory.mktemp("project")
    subprocess.run([sys.executable, "-m", "tools.editor", folder], cwd=ROOT, check=True)
    return folder


def check(file: Path, folder: Path) -> tuple[int, str]:
    """Open a file by the commands in this folder; return the status and what clangd says."""
    options = [
        f"--compile-commands-dir={folder}",
        "--enable-config=0",  # of the machine's user
        "--check-locations=0",  # whether clangd can refactor each line
        f"--check={file}",
    ]
    checked = subprocess.run([CLANGD, *options], capture_output=True, text=True, check=False)
    return checked.returncode, checked.stderr


def commands(folder: Path) -> dict[Path, dict[str, object]]:
    entries = json.loads((folder / "compile_commands.json").read_text())
    return {Path(entry["file"]): entry for entry in entries}


def test_each_file_has_a_command_of_its_own(project: Path) -> None:
    assert sorted(commands(project)) == SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_opens_without_an_error(project: Path, source: Path) -> None:
    status, said = check(source, project)

    assert status == 0, said
    assert f"-- {source}\n" in said, "opened by the command of another file"


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ("return READ(skb, no_such_field);", "no member named 'no_such_field' in 'struct sk_buff'"),
        ("return NO_SUCH_CONSTANT;", "undeclared identifier 'NO_SUCH_CONSTANT'"),
        ("return received.search(&skb);", "no member named 'search' in 'struct received_table_t'"),
        ("return get_config()->no_such_member;", "'no_such_member' in 'struct config'"),
        ("return bpf_ktime_get_ns(skb);", "too many arguments"),
        ("struct sock *sk = *skb;", "initializing 'struct sock *' with"),
    ],
    ids=["field", "constant", "map", "member", "helper", "type"],
)
def test_a_mistake_is_an_error_at_its_line(
    project: Path, tmp_path: Path, mistake: str, error: str
) -> None:
    source = ROOT / "bpf/modules/rx.bpf.c"
    text = source.read_text()
    changed = tmp_path / source.name
    changed.write_text(f"{text}\nint mistaken(struct sk_buff *skb)\n{{\n\t{mistake}\n}}\n")
    entry = commands(project)[source]
    arguments = json.loads(json.dumps(entry["arguments"]).replace(f'"{source}"', f'"{changed}"'))
    entry = {**entry, "file": str(changed), "arguments": arguments}
    (tmp_path / "compile_commands.json").write_text(json.dumps([entry]))

    status, said = check(changed, tmp_path)

    assert status != 0
    line = len(text.splitlines()) + 4
    assert error in next(each for each in said.splitlines() if f"Line {line}:" in each)


def test_a_header_is_taken_from_bccs_library_or_missed() -> None:
    library = b"\1\0/* text */\n#ifndef GUARD\n#define GUARD\n#endif\n\0other\0"

    assert bcc_header(library, "GUARD") == "#ifndef GUARD\n#define GUARD\n#endif\n"
    with pytest.raises(LookupError, match="has none with OTHER"):
        bcc_header(library, "OTHER")
