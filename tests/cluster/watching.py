"""What `kubectl get --watch` tells of one object, each line with its time."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from devcluster.environment import Cluster

# kubectl aligns columns that a tab divides.
_BETWEEN = "|"


@dataclass(frozen=True)
class Line:
    """The fields of an object at one moment of the machine's monotonic clock."""

    at: float
    fields: tuple[str, ...]


@dataclass
class Watched:
    """The lines of one watch, oldest first."""

    lines: list[Line] = field(default_factory=list)

    def since(self, at: float) -> list[Line]:
        return [line for line in self.lines if line.at >= at]

    def before(self, at: float) -> list[Line]:
        return [line for line in self.lines if line.at < at]


@contextmanager
def watching(
    cluster: Cluster, resource: str, name: str, namespace: str, *paths: str
) -> Iterator[Watched]:
    """Watch these fields of an object, such as `.spec.holderIdentity`, while the block runs."""
    template = _BETWEEN.join(f"{{{path}}}" for path in paths) + '{"\\n"}'
    command = [
        *(str(cluster.kubectl_path), "get", resource, name, f"--namespace={namespace}"),
        *("--watch", f"--output=jsonpath={template}"),
    ]
    watched = Watched()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=cluster.environment()
    ) as process:
        assert process.stdout
        output = process.stdout

        def read() -> None:
            for text in output:
                watched.lines.append(
                    Line(time.monotonic(), tuple(text.rstrip("\n").split(_BETWEEN)))
                )

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield watched
        finally:
            process.terminate()
            reader.join()
