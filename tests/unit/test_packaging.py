"""The project's own files agree with each other, and a wheel holds what a node needs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.images.source import copy_sources

ROOT = Path(__file__).parents[2]
LOCKS = (
    "requirements.lock",
    "requirements-build.lock",
    "requirements-cluster.lock",
    "requirements-uv.lock",
    "operator/requirements.lock",
    "node_agent/requirements.lock",
)
HOST_OR_PATH = re.compile(r"^.*(?:://|--index-url|--find-links| /\w).*$", re.MULTILINE)
PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)", re.MULTILINE)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def locked() -> dict[str, set[str]]:
    """The versions in the lock, by package (more than one where Pythons differ)."""
    pins: dict[str, set[str]] = {}
    for lock in LOCKS:
        for pin in PIN.finditer((ROOT / lock).read_text()):
            pins.setdefault(canonicalize_name(pin["name"]), set()).add(pin["version"])
    return pins


def requirements(project: dict[str, Any]) -> list[Requirement]:
    groups = project["dependency-groups"].values()
    direct = [entry for group in groups for entry in group if isinstance(entry, str)]
    return [Requirement(text) for text in [*project["project"]["dependencies"], *direct]]


def test_wheels_are_built_with_the_packages_that_the_lock_pins(project: dict[str, Any]) -> None:
    assert project["build-system"]["requires"] == project["dependency-groups"]["build"]


def test_the_lock_pins_each_requirement_within_its_bounds(
    project: dict[str, Any], locked: dict[str, set[str]]
) -> None:
    outside = [
        f"{requirement}: locked {sorted(versions) or 'not at all'}"
        for requirement in requirements(project)
        if not (versions := locked.get(canonicalize_name(requirement.name), set()))
        or not all(requirement.specifier.contains(version) for version in versions)
    ]
    assert outside == [], "run `make lock`"


def test_generated_code_runs_on_the_oldest_grpc_that_is_allowed(project: dict[str, Any]) -> None:
    generator = next(
        Requirement(text)
        for text in project["build-system"]["requires"]
        if text.startswith("grpcio-tools")
    )
    (generated_for,) = (pin.version for pin in generator.specifier)
    (oldest,) = (
        bound.version
        for text in project["project"]["dependencies"]
        if (requirement := Requirement(text)).name == "grpcio"
        for bound in requirement.specifier
    )
    assert oldest == generated_for


@pytest.mark.parametrize(
    "script", ["Makefile", "tools/setup-go", "operator/Containerfile", "node_agent/Containerfile"]
)
def test_packages_are_installed_by_hash_alone(script: str) -> None:
    """The project itself has none, and brings no dependency with it."""
    installs = re.findall(r"pip\"? install (.*)", (ROOT / script).read_text())
    assert installs
    unpinned = [each for each in installs if "--require-hashes" not in each]
    assert all("--no-deps" in each and "--editable ." in each for each in unpinned), unpinned


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_server_and_no_path(lock: str) -> None:
    assert HOST_OR_PATH.findall((ROOT / lock).read_text()) == []


@pytest.mark.parametrize("package", ["latencyprobe", "latencyprobe_agent", "latencyprobe_operator"])
def test_all_packages_import_from_this_checkout(package: str) -> None:
    origin = importlib.import_module(package).__file__
    assert origin is not None
    assert Path(origin).is_relative_to(ROOT)


def test_the_folder_operator_does_not_shadow_the_standard_library() -> None:
    program = "import operator; print(operator.add(1, 2))"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "3\n"


def test_a_wheel_holds_the_packages_the_stubs_and_the_c_sources(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = copy_sources(tmp_path / "source")
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    c_sources = {
        f"latencyprobe_agent/{path.relative_to(source)}" for path in source.glob("bpf/**/*.[ch]")
    }
    assert "latencyprobe_agent/bpf/latencyprobe.bpf.c" in c_sources
    stubs = {f"latencyprobe/protocol/v1/node_agent_pb2{end}" for end in (".py", ".pyi", "_grpc.py")}
    modules = {
        str(path.relative_to(root))
        for root in (source, source / "node_agent", source / "operator")
        for path in root.glob("latencyprobe*/**/*.py")
    }
    stubs |= {f"latencyprobe/exposition/metrics_pb2{end}" for end in (".py", ".pyi")}
    assert c_sources | stubs | modules <= files
    assert not {
        name
        for name in files
        if name.startswith(("tests", "bench", "devcluster", "tools", "build", "operator/"))
    }


@pytest.mark.parametrize("image", ["operator-image", "agent-image"])
def test_an_image_holds_dependencies_of_the_project_and_no_others(
    project: dict[str, Any], image: str
) -> None:
    dependencies = {Requirement(text).name for text in project["project"]["dependencies"]}
    assert set(project["dependency-groups"][image]) <= dependencies


def test_all_locks_pin_the_same_versions(locked: dict[str, set[str]]) -> None:
    # numpy has one for each Python.
    assert {name for name, versions in locked.items() if len(versions) > 1} <= {"numpy"}
