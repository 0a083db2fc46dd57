"""The images of `make images`, run as a container runtime runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from devcluster import programs
from devcluster.waiting import wait_until
from latencyprobe import __version__
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from tests.cluster.containers import Mount, Privileges, UnpackedImage
from tests.unit.agent.states import probe, state
from tools.images import build, sbom
from tools.images.components import COMPONENTS, ROOT, SITE_PACKAGES, own_architecture
from tools.progress import say_on_stderr

ARCHITECTURE = own_architecture()
# The same as in the chart's securityContext of the agent.
AGENT_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN")
LOADER = {"amd64": "/lib64/ld-linux-x86-64.so.2", "arm64": "/lib/ld-linux-aarch64.so.1"}
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def images(
    built: dict[str, build.Built], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, UnpackedImage]:
    """The same, unpacked."""
    runc = programs.obtain(say_on_stderr)["runc"]
    return {
        name: UnpackedImage(image.path, tmp_path_factory.mktemp(name), runc)
        for name, image in built.items()
    }


@pytest.fixture(params=list(COMPONENTS))
def component(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


def is_elf(path: Path) -> bool:
    """A program or a library."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def test_an_image_carries_its_bill_of_materials(
    built: dict[str, build.Built], images: dict[str, UnpackedImage], component: str
) -> None:
    beside = built[component].sbom.read_text()
    inside = images[component].root / sbom.FOLDER / f"latencyprobe-{component}{sbom.SUFFIX}"
    assert inside.read_text() == beside
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(beside) is None
    names = {each["name"] for each in json.loads(beside)["components"]}
    installed = {
        canonicalize_name(folder.name.split("-")[0])
        for folder in (images[component].root / SITE_PACKAGES).glob("*.dist-info")
    }
    assert names == {*COMPONENTS[component].debian_packages, *installed, "debian"}


def test_two_builds_from_nothing_give_the_same_archives(
    built: dict[str, build.Built], tmp_path: Path
) -> None:
    again = build.build(
        list(COMPONENTS),
        ARCHITECTURE,
        tmp_path,
        say_on_stderr,
        cache=tmp_path / "cache",
    )
    assert [image.digest for image in again] == [image.digest for image in built.values()]
    for image, first in zip(again, built.values(), strict=True):
        assert image.path.read_bytes() == first.path.read_bytes()
        assert image.sbom.read_bytes() == first.sbom.read_bytes()


def test_an_image_says_what_it_is(component: str, images: dict[str, UnpackedImage]) -> None:
    image = images[component]
    assert image.reference == f"docker.io/library/latencyprobe-{component}:{__version__}"
    assert image.descriptor["annotations"]["io.containerd.image.name"] == image.reference
    configuration = image.configuration
    assert (configuration["architecture"], configuration["os"]) == (ARCHITECTURE, "linux")
    assert configuration["config"]["Entrypoint"] == ["latencyprobe", component]
    labels = configuration["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.created"] == configuration["created"]
    assert image.manifest["annotations"] == labels


def test_the_images_are_small(built: dict[str, build.Built]) -> None:
    assert built["operator"].uncompressed_bytes < 95 * MEGABYTE
    assert built["operator"].compressed_bytes < 32 * MEGABYTE
    # LLVM, clang and the libraries that they link are 225 MB of it.
    assert built["agent"].uncompressed_bytes < 295 * MEGABYTE
    assert built["agent"].compressed_bytes < 106 * MEGABYTE


def test_there_is_no_shell_and_no_package_manager(
    component: str, images: dict[str, UnpackedImage]
) -> None:
    programs_there = {path.name for path in (images[component].root / "usr/bin").iterdir()}
    assert programs_there == {"python3", "python3.11"}
    assert not list((images[component].root / "usr/sbin").iterdir())


def test_no_file_gives_its_user_more_than_he_has(
    component: str, images: dict[str, UnpackedImage]
) -> None:
    for path in images[component].root.rglob("*"):
        assert path.is_symlink() or not path.stat().st_mode & 0o6022, path


def test_nothing_in_an_image_shows_where_it_was_built(
    component: str, images: dict[str, UnpackedImage]
) -> None:
    modules = images[component].root / SITE_PACKAGES
    builders = (str(ROOT).encode(), sys.prefix.encode())
    for path in modules.rglob("*"):
        assert path.is_dir() or not any(word in path.read_bytes() for word in builders), path


def test_scanners_find_the_packages_and_their_licences(
    component: str, images: dict[str, UnpackedImage]
) -> None:
    root = images[component].root
    assert "VERSION_CODENAME=bookworm" in (root / "etc/os-release").read_text()
    for package in COMPONENTS[component].debian_packages:
        description = (root / "var/lib/dpkg/status.d" / package).read_text()
        assert description.startswith(f"Package: {package}\n")
        assert (root / "usr/share/doc" / package / "copyright").is_file()
    assert list((root / SITE_PACKAGES).glob("grpcio-*.dist-info/METADATA"))


def test_no_library_is_missing(component: str, images: dict[str, UnpackedImage]) -> None:
    root = images[component].root
    libraries = [path for path in root.rglob("*") if is_elf(path)]
    assert len(libraries) > 50
    missing = {}
    for library in libraries:
        command = [
            "chroot",
            str(root),
            LOADER[ARCHITECTURE],
            "--list",
            f"/{library.relative_to(root)}",
        ]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        if listed.returncode:
            missing[library.name] = listed.stderr
    assert missing == {}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_its_command_answers_on_a_root_that_is_read_only(
    component: str, option: str, images: dict[str, UnpackedImage]
) -> None:
    answer = images[component].run(option)
    assert (answer.returncode, answer.stderr) == (0, "")
    expected = {"--help": f"Usage: latencyprobe {component} ", "--version": __version__}
    assert expected[option] in answer.stdout


def test_a_command_of_the_other_image_is_refused_with_the_missing_module(
    component: str, images: dict[str, UnpackedImage]
) -> None:
    (other,) = COMPONENTS.keys() - {component}
    answer = images[component].run("--help", entrypoint=("latencyprobe", other))
    assert answer.returncode == 1
    assert answer.stderr.endswith(f"lacks the Python module latencyprobe_{other}\n")


def test_the_operator_is_not_root_and_can_do_without_any_capability(
    images: dict[str, UnpackedImage],
) -> None:
    program = "import os, latencyprobe_operator.main; print(os.getuid(), os.getgid())"
    answer = images["operator"].run(program, entrypoint=("python3", "-c"))
    assert (answer.stdout, answer.stderr) == ("65532 65532\n", "")


def test_metrics_can_be_pushed(component: str, images: dict[str, UnpackedImage]) -> None:
    program = "import latencyprobe.otlp.pusher; print('imported')"
    answer = images[component].run(program, entrypoint=("python3", "-c"))
    assert (answer.stdout, answer.stderr) == ("imported\n", "")


def test_nothing_of_the_image_can_be_written(
    component: str, images: dict[str, UnpackedImage]
) -> None:
    program = "open('/usr/local/bin/latencyprobe', 'w')"
    answer = images[component].run(program, entrypoint=("python3", "-c"))
    assert answer.returncode == 1
    assert "OSError" in answer.stderr or "PermissionError" in answer.stderr


@pytest.fixture
def agent_socket(images: dict[str, UnpackedImage], tmp_path: Path) -> Iterator[Path]:
    """The socket of an agent that runs in its image, with the capabilities that the chart gives."""
    folder, log = tmp_path / "socket", tmp_path / "log"
    folder.mkdir(mode=0o700)
    privileges = Privileges(
        AGENT_CAPABILITIES,
        [Mount(folder, "/socket", writable=True), Mount(Path("/sys/fs/cgroup"), "/host/cgroup")],
        sees_all_processes=True,
    )
    options = ("--socket=/socket/agent.sock", "--cgroup-root=/host/cgroup")
    with images["agent"].running(*options, privileges=privileges, log=log) as process:
        wait_until(
            "the agent serves",
            lambda: None if "serving on" in log.read_text() else log.read_text() or "no log",
            seconds=60,
        )
        yield folder / "agent.sock"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def test_the_agent_compiles_and_attaches_its_programs_in_its_image(agent_socket: Path) -> None:
    with grpc.insecure_channel(f"unix:{agent_socket}") as channel:
        stub = NodeAgentStub(channel)
        result = stub.Apply(state(probe(pid=os.getpid())), timeout=60)
        assert result.probes[0].targets[0].state == pb.TargetStatus.ATTACHED
        stream = stub.WatchReports(iter([pb.WatchReportsRequest()]), timeout=30)
        assert next(stream).sequence == 1
        node = stub.GetNodeInfo(pb.GetNodeInfoRequest(), timeout=20)
        covered = {stage.name for stage in node.coverage if stage.state == pb.StageCoverage.ACTIVE}
        assert {"rx.stack", "rx.socket", "tx.stack", "tcp.rtt"} <= covered
