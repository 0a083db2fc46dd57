"""The newest Prometheus, for tests: compiled once, without its pages.

Debian's is older: it reads native histograms behind a flag, and exemplars from classic buckets.
"""

from __future__ import annotations

from pathlib import Path

from tools.go_programs import GoModule, one_at_a_time
from tools.progress import Say

_PATH = "github.com/prometheus/prometheus"
PROMETHEUS = GoModule(
    name="prometheus",
    directory=Path(__file__).parent / "prometheus-binary",
    path=_PATH,
    package_prefix=f"{_PATH}/cmd/",
    # A test names its targets: without the clients of clouds it is a third of the size.
    tags="remove_all_sd",
)


def obtain_prometheus(say: Say) -> Path:
    """Return the path of Prometheus; compile it the first time, some minutes on two cores."""
    with one_at_a_time():
        program = PROMETHEUS.cache / "prometheus"
        if not program.exists():
            say(f"Building prometheus {PROMETHEUS.version}: some minutes on two cores, once.")
            version = f"-X github.com/prometheus/common/version.Version={PROMETHEUS.version}"
            PROMETHEUS.build(["prometheus"], version, say)
        return program
