"""The operator as a process beside the cluster, and an agent without a kernel on its node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from devcluster.environment import Cluster
from latencyprobe_operator.agents.credentials import ClientTlsFiles

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
OPERATOR_NAMESPACE = "latencyprobe-system"
STOP_SECONDS = 20


class Process:
    """A process that logs into a file."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Begin; the log goes on where it was."""
        environment = {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            "PYTHONPATH": str(ROOT),
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int | None:
        """End it; its exit code."""
        if self._process is None:
            return None
        self._process.send_signal(how)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        self._process = None
        return code

    @contextmanager
    def halted(self) -> Iterator[None]:
        """It stands still inside the context."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def tail(self) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])

    @contextmanager
    def running(self) -> Iterator[Process]:
        """Runs inside the context."""
        self.start()
        try:
            yield self
        finally:
            self.stop()


def install(cluster: Cluster) -> Path:
    """Apply the CRD and the operator's permissions; a kubeconfig of its ServiceAccount."""
    cluster.kubectl("apply", "--filename", str(MANIFESTS / "crd.yaml"))
    cluster.kubectl("apply", "--filename", str(MANIFESTS / "rbac.yaml"))
    cluster.kubectl(
        "wait", "--for=condition=Established", "crd/latencyprobes.latencyprobe.io", "--timeout=60s"
    )
    return cluster.service_account_kubeconfig(OPERATOR_NAMESPACE, "latencyprobe-operator")


def operator_arguments(kubeconfig: Path, tls: ClientTlsFiles) -> list[str]:
    """How the operator is started beside a cluster."""
    return [
        str(Path(sys.executable).with_name("latencyprobe")),
        "operator",
        f"--kubeconfig={kubeconfig}",
        f"--ca-file={tls.ca}",
        f"--cert-file={tls.certificate}",
        f"--key-file={tls.key}",
    ]
