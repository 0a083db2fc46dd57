"""The container images, as far as they can be looked at without building them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from latencyprobe import __version__
from tools.images import archive, build, containerfile, layers, source
from tools.images.components import AGENT, ARCHITECTURES, COMPONENTS, OPERATOR, ROOT, Component

ARGUMENTS = {"VERSION": "1.2.3", "REVISION": "abc", "CREATED": "2026-01-02T03:04:05Z"}
LAST_STAGE = """\
FROM debian AS build
USER 1
FROM scratch
ARG VERSION
COPY --from=build /layers/debian /
COPY --from=build /layers/project /
LABEL title="a b" version="${VERSION}"
ENV PATH=/bin A=b
USER 7:8
ENTRYPOINT ["latencyprobe", "agent"]
"""


def read(folder: Path, text: str, arguments: Mapping[str, str] = ARGUMENTS) -> Any:
    (folder / "Containerfile").write_text(text)
    return containerfile.read(folder / "Containerfile", arguments)


def chart_values() -> Any:
    return yaml.safe_load((ROOT / "charts" / "latencyprobe" / "values.yaml").read_text())


# --- What the Containerfiles say ---


@pytest.mark.parametrize("component", COMPONENTS.values(), ids=list(COMPONENTS))
def test_a_containerfile_names_its_version_commit_and_time(component: Component) -> None:
    config = containerfile.read(component.containerfile, ARGUMENTS)
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in config.labels.items()
    }
    assert labels["title"] == f"latencyprobe {component.name}"
    assert (labels["version"], labels["revision"], labels["created"]) == tuple(ARGUMENTS.values())
    assert labels["licenses"]
    assert labels["description"]
    assert config.entrypoint == ("latencyprobe", component.name)
    assert config.layers == layers.LAYERS


def test_the_operator_runs_as_the_user_that_is_in_its_passwd_and_is_not_root() -> None:
    user = containerfile.read(OPERATOR.containerfile, ARGUMENTS).user
    uid, _, gid = user.partition(":")
    assert int(uid) > 0
    assert f":{uid}:{gid}:" in layers.ACCOUNTS


def test_the_agent_runs_as_root_whom_the_chart_leaves_few_capabilities() -> None:
    assert containerfile.read(AGENT.containerfile, ARGUMENTS).user == "0:0"


@pytest.mark.parametrize("component", COMPONENTS.values(), ids=list(COMPONENTS))
def test_both_containerfiles_build_on_the_same_pinned_base(component: Component) -> None:
    (base,) = {
        line
        for other in COMPONENTS.values()
        for line in other.containerfile.read_text().splitlines()
        if line.startswith("ARG BASE=")
    }
    assert "@sha256:" in base


def test_the_last_stage_makes_the_image(tmp_path: Path) -> None:
    config = read(tmp_path, LAST_STAGE)
    assert config.user == "7:8"
    assert config.entrypoint == ("latencyprobe", "agent")
    assert config.environment == {"PATH": "/bin", "A": "b"}
    assert config.labels == {"title": "a b", "version": "1.2.3"}
    assert config.layers == ("debian", "project")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("FROM scratch", "FROM debian"), "FROM debian is not allowed; write FROM scratch"),
        (("USER 7:8", "WORKDIR /x"), r"WORKDIR /x is not allowed; use only .*ENTRYPOINT"),
        (("USER 7:8\n", ""), "USER must occur once, not 0 times"),
        (("ARG VERSION", "ARG VERSION\nARG OTHER"), "ARG OTHER has no value"),
        (("/layers/debian /", "/etc /etc"), "write COPY --from=build /layers/NAME /"),
    ],
)
def test_an_instruction_that_make_images_would_leave_out_is_refused(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    with pytest.raises(containerfile.ContainerfileError, match=complaint) as refused:
        read(tmp_path, LAST_STAGE.replace(*change))
    assert str(refused.value).startswith(f"{tmp_path}/Containerfile")


def test_a_build_in_a_container_is_given_all_that_it_reads() -> None:
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    read_there = {*source.WHEEL_FOLDERS, *source.WHEEL_FILES, "tools", "requirements-build.lock"}
    assert {line[1:] for line in ignored if line.startswith("!")} == read_there
    assert (ROOT / ".dockerignore").readlink() == Path(".containerignore")


# --- Names ---


@pytest.mark.parametrize("component", COMPONENTS.values(), ids=list(COMPONENTS))
def test_an_image_is_called_as_the_chart_calls_it(component: Component) -> None:
    image = chart_values()[component.name]["image"]
    assert image["tag"] == ""  # the chart's appVersion, which is ours
    expected = f"docker.io/library/{image['repository']}:{__version__}"
    assert build.reference(component, __version__) == expected


# --- Layers ---


def test_a_layer_does_not_depend_on_time_order_and_umask(
    tmp_path: Path,
) -> None:
    tars = []
    for name, order, umask in (("one", 1, 0o022), ("two", -1, 0o077)):
        root = tmp_path / name
        before = os.umask(umask)
        try:
            (root / "usr").mkdir(parents=True)
            for number in list(range(20))[::order]:
                (root / "usr" / f"file{number}").write_text("x")
            (root / "usr" / "program").touch(0o755 & ~umask)
            (root / "usr" / "program").chmod(0o700 | (0o077 & ~umask))
            (root / "link").symlink_to("usr/program")
        finally:
            os.umask(before)
        layers.settle(root)
        archive.write_tar(root, tmp_path / f"{name}.tar")
        tars.append((tmp_path / f"{name}.tar").read_bytes())
    assert tars[0] == tars[1]


def test_a_layer_of_no_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(layers.LayerError, match="unknown layer 'other'; choose one of debian, dep"):
        layers.lay("other", AGENT, "amd64", tmp_path / "a.whl", tmp_path)


def test_neither_image_holds_the_others_modules() -> None:
    assert "latencyprobe_operator" in AGENT.unused_modules
    assert "latencyprobe_agent" in OPERATOR.unused_modules


def test_only_the_agent_holds_bcc() -> None:
    assert "python3-bpfcc" in AGENT.debian_packages
    assert not {name for name in OPERATOR.debian_packages if "llvm" in name or "bpf" in name}


# --- The checkout ---


def test_the_time_of_an_image_is_that_which_the_environment_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert source.describe().created.isoformat() == "1970-01-02T00:00:00+00:00"


def test_a_time_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(source.SourceError, match="invalid SOURCE_DATE_EPOCH 'yesterday': it must"):
        source.describe()


def test_outside_of_git_the_time_has_to_be_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    with pytest.raises(source.SourceError, match=r"not a git repository.*; set SOURCE_DATE_EPOCH"):
        source.describe()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert source.describe().revision == "unknown"


def test_a_wheel_of_the_same_files_is_the_same(tmp_path: Path) -> None:
    wheels = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        wheels.append(source.build_wheel(tmp_path / name).read_bytes())
    assert wheels[0] == wheels[1]


def test_there_are_images_for_the_architectures_of_grpcs_wheels() -> None:
    for component in COMPONENTS.values():
        assert "grpcio==" in component.requirements.read_text()
    assert set(ARCHITECTURES) == {"amd64", "arm64"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["build", "--architecture=riscv64"],
            "unknown architecture 'riscv64'; choose one of amd64, arm64",
        ),
        (["build", "agents"], "unknown image 'agents'; choose from operator, agent"),
        (
            ["lay", "agents", "amd64", "wheels", "layers"],
            "unknown image 'agents'; choose from operator, agent",
        ),
        ([], "arguments are required"),
    ],
)
def test_an_unknown_image_is_refused_with_the_known_ones(
    arguments: list[str], complaint: str
) -> None:
    command = [sys.executable, "-m", "tools.images", *arguments]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert complaint in answer.stderr
    assert "Traceback" not in answer.stderr


def test_without_umoci_an_archive_is_refused_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    image = archive.Image("a", "amd64", datetime.fromtimestamp(0, UTC), [], ["a"])
    with pytest.raises(
        archive.ArchiveError, match="umoci is not installed; run tools/setup-system im"
    ):
        archive.write_archive(image, tmp_path / "a.tar")
