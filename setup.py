"""Build steps that pyproject.toml cannot express: stubs of proto/, and C sources inside the agent.

`make stubs` runs `setup.py stubs`; a wheel and an editable install make the stubs by themselves.
"""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import ClassVar, Literal

from setuptools import Command, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PROTOS = ROOT / "proto"
# Where each folder of proto/ is generated to; the stubs import each other by their later names.
SERVICE_STUBS = {Path("latencyprobe", "v1"): Path("latencyprobe", "protocol", "v1")}
# Messages without a service.
MESSAGE_STUBS = {Path("io", "prometheus", "client"): Path("latencyprobe", "exposition")}
BPF_SOURCES = ROOT / "bpf"
BPF_PACKAGE_FOLDER = Path("latencyprobe_agent", "bpf")
# protoc itself knows the types of messages (`pyi`), not those of services.
STUB_TYPES_PLUGIN = "protoc-gen-mypy_grpc"


def _program(name: str) -> str:
    """Find a program beside this interpreter, or on the PATH of an isolated build."""
    folders = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise SystemExit(f"{name} is not installed; run pip install mypy-protobuf")
    return found


class Stubs(Command):
    """The command that generates the stubs and their types in the shared package."""

    description = "generate the stubs from proto/"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        """Set no options."""

    def finalize_options(self) -> None:
        """Check no options."""

    def run(self) -> None:
        """Generate `*_pb2.py`, `*_pb2_grpc.py` and their types."""
        messages = [f"--{output}_out={ROOT}" for output in ("python", "pyi")]
        services = [
            f"--plugin={STUB_TYPES_PLUGIN}={_program(STUB_TYPES_PLUGIN)}",
            f"--grpc_python_out={ROOT}",
            f"--mypy_grpc_out=quiet:{ROOT}",
        ]
        for source, stubs in SERVICE_STUBS.items():
            self._generate(PROTOS / source, stubs, [*messages, *services])
        for source, stubs in MESSAGE_STUBS.items():
            self._generate(PROTOS / source, stubs, messages)

    def _generate(self, source: Path, stubs: Path, outputs: list[str]) -> None:
        # Only a build needs it, and a build backend must import without it.
        from grpc_tools import protoc  # noqa: PLC0415

        arguments = [
            "protoc",
            f"-I{stubs}={source}",
            f"-I{Path(protoc.__file__).parent / '_proto'}",  # google/protobuf/*.proto
            *outputs,
            *(str(stubs / path.name) for path in sorted(source.glob("*.proto"))),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit(f"protoc failed: {' '.join(arguments)}")


class BuildPy(build_py):
    """The command that builds the package, after the stubs and with the C sources.

    An editable install has no copy of the C sources: the agent finds them in the checkout.
    """

    def run(self) -> None:
        """Generate the stubs, build, and copy the C sources."""
        self.run_command("stubs")
        super().run()
        if not self.editable_mode:
            for source, built in self._bpf_copies():
                self.mkpath(str(built.parent))
                self.copy_file(str(source), str(built))

    def get_outputs(self, include_bytecode: Literal[0, 1] | bool = True) -> list[str]:
        """Return the built files, those of the C sources included."""
        outputs: list[str] = super().get_outputs(bool(include_bytecode))
        copies = [] if self.editable_mode else self._bpf_copies()
        return [*outputs, *(str(built) for _, built in copies)]

    def _bpf_copies(self) -> list[tuple[Path, Path]]:
        folder = Path(self.build_lib) / BPF_PACKAGE_FOLDER
        sources = sorted(BPF_SOURCES.rglob("*.[ch]"))
        return [(source, folder / source.relative_to(BPF_SOURCES)) for source in sources]


setup(cmdclass={"build_py": BuildPy, "stubs": Stubs})
