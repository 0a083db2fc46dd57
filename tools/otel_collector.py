"""A collector of OpenTelemetry, for the tests: compiled with one receiver and one exporter."""

from pathlib import Path

from tools.go_programs import GoModule, one_at_a_time
from tools.progress import Say

_PROGRAM = "otelcol"
COLLECTOR = GoModule(
    name="otel-collector",
    directory=Path(__file__).parent / "otel-collector-binary",
    path="go.opentelemetry.io/collector/otelcol",
    package_prefix="./",
)


def obtain_collector(say: Say) -> Path:
    """Return the path of the collector; compile it the first time, some minutes on two cores."""
    with one_at_a_time():
        program = COLLECTOR.cache / _PROGRAM
        if not program.exists():
            say(f"Building the OpenTelemetry collector {COLLECTOR.version}: some minutes, once.")
            COLLECTOR.build([_PROGRAM], "", say)
        return program
