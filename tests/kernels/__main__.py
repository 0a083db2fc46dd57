"""Prints the matrix of the last run on each kernel, as docs/kernels.md has it."""

from __future__ import annotations

from tests.kernels.debian import RELEASES
from tests.kernels.guests import results_folder
from tests.kernels.inside.results import read_coverage
from tests.kernels.matrix import matrix

print(matrix([column for release in RELEASES for column in read_coverage(results_folder(release))]))
