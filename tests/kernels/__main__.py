"""The matrix of the last run on each kernel: printed, or put into docs/kernels.md."""

from __future__ import annotations

import argparse

from tests.kernels.debian import RELEASES
from tests.kernels.guests import results_folder
from tests.kernels.inside.results import read_coverage
from tests.kernels.matrix import DOCUMENT, matrix, write


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.kernels", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT.name}")
    options = parser.parse_args()
    columns = [column for release in RELEASES for column in read_coverage(results_folder(release))]
    if options.write:
        write(columns)
    else:
        print(matrix(columns))


if __name__ == "__main__":
    main()
