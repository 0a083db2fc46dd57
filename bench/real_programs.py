"""Programs that people run, as load: a server that stays, and a client for each slice of time."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.network import FIRST, Namespace, in_cgroup, last_cpu
from bench.outcome import CannotMeasureError
from bench.pods import SERVER_ADDRESS

SECONDS = 2
"""The length of a slice: wrk and pgbench take whole seconds."""
_START_S = 60
_END_S = 20
_LONGEST_S = 10
# Of an output without a rate, the last characters.
_SAID = 500
_PORT = "7000"
_REDIS_REQUESTS = "40000"
"""As many as take a second or two: redis-benchmark cannot be given a time."""
_REDIS_CLIENT = ("redis-benchmark", "-c", "8", "--csv", "-t", "get", "-n", _REDIS_REQUESTS)
_QUERY = "query.sql"
_POSTGRES_USER = "postgres"
_NGINX = """\
daemon off; master_process off; worker_processes 1; error_log stderr crit; pid {folder}/pid;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen {address}:{port}; location / {{ return 200 "ok\\n"; }} }}
}}
"""


class Inside:
    """Runs commands in a pod's namespace and cgroup, all on one CPU: so the rate shows all cost."""

    def __init__(self, namespace: Namespace, cgroup: Path) -> None:
        cpu = last_cpu()
        inside = ("nsenter", f"--net={namespace.path}", "taskset", "--cpu-list", str(cpu))
        self._prefix = [*in_cgroup(cgroup), *FIRST, *inside]

    def start(self, arguments: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """Start a program that goes on."""
        return subprocess.Popen(
            [*self._prefix, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def output(self, arguments: Sequence[str | Path]) -> str:
        """Return what a program prints; raise CannotMeasureError if it fails."""
        command = [*self._prefix, *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_LONGEST_S
            )
        except subprocess.TimeoutExpired:
            # As redis-benchmark, which asks for ever while no server listens.
            raise CannotMeasureError(f"{arguments[0]} has not ended in {_LONGEST_S} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise CannotMeasureError(f"{arguments[0]} ended with status {done.returncode}: {said}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Program:
    """A server with its client. Both get a folder, into which `prepare` writes what they need.

    `rate` reads the client's output. `packages`: the Debian packages with both.
    """

    name: str
    packages: str
    server: Callable[[Path], Sequence[str | Path]]
    client: Callable[[Path], Sequence[str | Path]]
    rate: Callable[[str], float]
    prepare: Callable[[Path], None] = field(default=lambda _: None)

    def require(self) -> None:
        """Raise CannotMeasureError if the machine lacks one of the two."""
        for command in (self.server, self.client):
            name = command(Path("/"))[0]
            if shutil.which(name) is None:
                raise CannotMeasureError(f"{name} is not installed: install {self.packages}")


class Load:
    """One program that serves, until `serving` ends it."""

    def __init__(self, program: Program, client: Inside, folder: Path) -> None:
        self._program = program
        self._client = client
        self._folder = folder

    def measured(self) -> float:
        """Return the rate of one slice of time."""
        output = self._client.output(self._program.client(self._folder))
        try:
            return self._program.rate(output)
        except (LookupError, ValueError):
            # As iperf3, whose document has an error then, and whose status is 0.
            said = output.strip()[-_SAID:]
            raise CannotMeasureError(f"{self._program.name} has no rate: {said}") from None


@contextmanager
def serving(program: Program, server: Inside, client: Inside) -> Iterator[Load]:
    """Run a server in its pod, for the time of the `with` block."""
    program.require()
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as name:
        folder = Path(name)
        program.prepare(folder)
        process = server.start(program.server(folder))
        try:
            load = Load(program, client, folder)
            _wait_until_it_answers(load, process, program.name)
            yield load
        finally:
            _end(process)


def _wait_until_it_answers(load: Load, process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        if process.poll() is not None:
            raise CannotMeasureError(f"{name} ended with status {process.returncode}")
        try:
            load.measured()
        except CannotMeasureError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the program and its children: all are in one session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --------------------------------------------------------------------------- the programs


def _redis_rate(output: str) -> float:
    """Read the last line of `--csv`: the test's name, then requests a second."""
    return float(output.splitlines()[-1].split(",")[1].strip('"'))


def _wrk_rate(output: str) -> float:
    (line,) = (line for line in output.splitlines() if line.startswith("Requests/sec:"))
    return float(line.split()[1])


def _iperf3_rate(output: str) -> float:
    return float(json.loads(output)["end"]["sum_received"]["bits_per_second"])


def _pgbench_rate(output: str) -> float:
    (line,) = (line for line in output.splitlines() if line.startswith("tps = "))
    return float(line.split()[2])


def _write_nginx_configuration(folder: Path) -> None:
    text = _NGINX.format(folder=folder, address=SERVER_ADDRESS, port=_PORT)
    (folder / "nginx.conf").write_text(text)


def _postgres(name: str) -> Path:
    """Return a program of PostgreSQL: Debian keeps those of a server apart."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not found:
        raise CannotMeasureError(f"{name} is not installed: install postgresql")
    return found[-1]


def _make_database(folder: Path) -> None:
    """Make a database cluster. PostgreSQL refuses to run as root."""
    owner = pwd.getpwnam(_POSTGRES_USER)
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    made = subprocess.run(
        [
            *("runuser", "-u", _POSTGRES_USER, "--"),
            *(_postgres("initdb"), "--pgdata", folder / "data", "--auth", "trust"),
            *("--username", _POSTGRES_USER, "--no-sync"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise CannotMeasureError(f"initdb: {made.stderr.strip()}")
    with (folder / "data" / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 198.18.0.0/24 trust\n")
    (folder / _QUERY).write_text("SELECT 1;\n")


PROGRAMS = (
    Program(
        "redis",
        "redis-server and redis-tools",
        lambda _: (
            *("redis-server", "--bind", SERVER_ADDRESS, "--port", _PORT),
            *("--save", "", "--protected-mode", "no"),
        ),
        lambda _: (*_REDIS_CLIENT, "-h", SERVER_ADDRESS, "-p", _PORT),
        _redis_rate,
    ),
    Program(
        "redis by a UNIX socket",
        "redis-server and redis-tools",
        lambda folder: (
            *("redis-server", "--port", "0", "--save", ""),
            *("--unixsocket", folder / "redis.sock"),
        ),
        lambda folder: (*_REDIS_CLIENT, "-s", folder / "redis.sock"),
        _redis_rate,
    ),
    Program(
        "nginx",
        "nginx-light and wrk",
        lambda folder: ("nginx", "-c", folder / "nginx.conf", "-e", "stderr"),
        lambda _: ("wrk", "-t1", "-c8", f"-d{SECONDS}s", f"http://{SERVER_ADDRESS}:{_PORT}/"),
        _wrk_rate,
        _write_nginx_configuration,
    ),
    Program(
        "iperf3",
        "iperf3",
        lambda _: ("iperf3", "--server", "--bind", SERVER_ADDRESS, "--port", _PORT),
        lambda _: (
            *("iperf3", "--client", SERVER_ADDRESS, "--port", _PORT),
            *("--time", str(SECONDS), "--json"),
        ),
        _iperf3_rate,
    ),
    Program(
        "postgres",
        "postgresql",
        lambda folder: (
            *("runuser", "-u", _POSTGRES_USER, "--", _postgres("postgres"), "-D", folder / "data"),
            *("-k", "", "-h", SERVER_ADDRESS, "-p", _PORT),
        ),
        lambda folder: (
            *("pgbench", "-h", SERVER_ADDRESS, "-p", _PORT, "-U", _POSTGRES_USER, "-n"),
            *("-f", folder / _QUERY, "-c", "4", "-T", str(SECONDS), "postgres"),
        ),
        _pgbench_rate,
        _make_database,
    ),
)
