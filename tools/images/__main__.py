"""`python -m tools.images`: for `make images`, tools/sign-release and the Containerfiles."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tools.debian import DebianError
from tools.images.components import ARCHITECTURES, COMPONENTS, own_architecture
from tools.images.errors import ImageError
from tools.images.layers import LAYERS, lay


def _build(arguments: argparse.Namespace) -> None:
    # It needs packages that a Containerfile's build stage lacks.
    from tools.images import build  # noqa: PLC0415

    started = time.monotonic()
    names = arguments.components or list(COMPONENTS)
    built = build.build(names, arguments.architecture, arguments.into, _say_on_stderr)
    for image in built:
        print(
            f"{image.path}\n  {image.reference}  {image.digest}\n"
            f"  {_megabytes(image.compressed_bytes)} to download, "
            f"{_megabytes(image.uncompressed_bytes)} unpacked\n"
            f"  {image.sbom}"
        )
    _say_on_stderr(f"built in {time.monotonic() - started:.0f} s")


def _provenance(arguments: argparse.Namespace) -> None:
    # As above.
    from tools.images import provenance  # noqa: PLC0415

    statement = provenance.statement(arguments.folder, arguments.builder)
    print(json.dumps(statement, indent=1))


def _lay(arguments: argparse.Namespace) -> None:
    (wheel,) = arguments.wheels.glob("*.whl")
    for name in LAYERS:
        root = arguments.into / name
        root.mkdir(parents=True)
        lay(name, COMPONENTS[arguments.component], arguments.architecture, wheel, root)


def main() -> int:
    """Run the command; return the exit code."""
    arguments = _parser().parse_args()
    try:
        arguments.run(arguments)
    except (DebianError, ImageError, OSError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.images", description=__doc__)
    commands = parser.add_subparsers(required=True)

    build = commands.add_parser("build", help="make OCI archives")
    build.add_argument("--architecture", type=_architecture, default=own_architecture())
    build.add_argument("--into", type=Path, default=Path("dist"), metavar="FOLDER")
    build.add_argument("components", nargs="*", type=_component, help=f"{_names(COMPONENTS)}; all")
    build.set_defaults(run=_build)

    states = commands.add_parser("provenance", help="print the provenance of archives")
    states.add_argument("--builder", required=True, metavar="URI")
    states.add_argument("folder", type=Path)
    states.set_defaults(run=_provenance)

    lays = commands.add_parser("lay", help="fill the layers' folders (in a Containerfile)")
    lays.add_argument("component", type=_component)
    lays.add_argument("architecture", type=_architecture)
    lays.add_argument("wheels", type=Path)
    lays.add_argument("into", type=Path)
    lays.set_defaults(run=_lay)
    return parser


# argparse also holds a default against a type, but not against choices.


def _architecture(text: str) -> str:
    if text not in ARCHITECTURES:
        raise argparse.ArgumentTypeError(
            f"unknown architecture {text!r}; choose one of {_names(ARCHITECTURES)}"
        )
    return text


def _component(text: str) -> str:
    if text not in COMPONENTS:
        raise argparse.ArgumentTypeError(
            f"unknown image {text!r}; choose from {_names(COMPONENTS)}"
        )
    return text


def _names(table: Iterable[str]) -> str:
    return ", ".join(table)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _say_on_stderr(message: str) -> None:
    print(f"images: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
