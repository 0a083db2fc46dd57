"""The agent as a process: starting, refusing to start, and ending without a trace."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest

from latencyprobe.commands.pki import initialise
from latencyprobe.domain.identities import AGENT_NAME
from latencyprobe.process.http_server import MAX_CONNECTIONS
from latencyprobe.process.memory_cgroup import MemoryCgroup
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_agent.kernel.load.handover import COMPILER_MODULE
from tests.live.agents import AGENT, running_agent
from tests.live.memory_cgroups import made_memory_cgroup, set_limit
from tests.live.targets import made_cgroup, python, sleeper, until
from tests.patience import patient
from tests.unit.agent.states import probe, state

POD_UID = "5d0c8f4e-7a3b-4c1d-9e2f-6b8a0d1c2e3f"
CID = "cd" * 32
MEBIBYTE = 1 << 20


def _refusal(*options: str, prefix: Sequence[str] = ()) -> str:
    """What an agent says that does not start."""
    done = subprocess.run(
        [*prefix, *AGENT, *options],
        capture_output=True,
        text=True,
        timeout=patient(120),
        check=False,
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    return done.stderr


@pytest.fixture
def tls(tmp_path: Path) -> tuple[str, ...]:
    directory = tmp_path / "pki"
    initialise(directory, days=1)
    names = (
        ("--ca-file", "client-ca.crt"),
        ("--cert-file", "agent.crt"),
        ("--key-file", "agent.key"),
    )
    return tuple(text for option, name in names for text in (option, str(directory / name)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_serves_and_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    path, log = tmp_path / "s" / "agent.sock", tmp_path / "log"
    with running_agent("--socket", str(path), "--node-name", "blue", log=log) as process:
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        with grpc.insecure_channel(f"unix:{path}") as channel:
            stub = NodeAgentStub(channel)
            assert (
                stub.GetNodeInfo(pb.GetNodeInfoRequest(), timeout=patient(60)).node_name == "blue"
            )
            result = stub.Apply(state(probe(pid=os.getpid())), timeout=patient(120))
            assert result.probes[0].targets[0].state == pb.TargetStatus.ATTACHED
            stream = stub.WatchReports(iter([pb.WatchReportsRequest()]), timeout=patient(120))
            assert next(stream).sequence == 1
            process.send_signal(number)
            with pytest.raises(grpc.RpcError) as ended:
                for _ in stream:
                    pass
            assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert process.wait(timeout=patient(60)) == 0, log.read_text()
    assert not path.exists()
    assert "Traceback" not in log.read_text()


@pytest.mark.own_build
def test_a_container_that_dies_while_its_programs_are_attached_is_gone_and_no_error(
    tmp_path: Path,
) -> None:
    path, log = tmp_path / "s" / "agent.sock", tmp_path / "log"
    desired = state(probe())
    desired.probes[0].targets.add(
        id="dying", container=pb.Container(pod_uid=POD_UID, container_id=f"containerd://{CID}")
    )
    with (
        running_agent("--socket", str(path), log=log) as process,
        grpc.insecure_channel(f"unix:{path}") as channel,
    ):
        stub = NodeAgentStub(channel)
        with (
            made_cgroup(f"kubepods/pod{POD_UID}/{CID}") as cgroup,
            sleeper(cgroup=cgroup) as container,
        ):
            until(lambda: str(container.pid) in (cgroup / "cgroup.procs").read_text(), "its start")
            applying = stub.Apply.future(desired, timeout=60)
            until(lambda: _is_compiling(process.pid), "the compiler process")
        result = applying.result()
        assert result.probes[0].targets[0].state == pb.TargetStatus.ATTACHED
        dying = pb.TargetStatus(id="dying", state=result.probes[0].targets[1].state)
        for report in stub.WatchReports(iter([pb.WatchReportsRequest()]), timeout=patient(120)):
            for target in (t for one in report.probes for t in one.targets):
                if target.status.id == "dying":
                    dying = target.status
            if dying.state == pb.TargetStatus.GONE:
                break
        assert dying.message
    assert "Traceback" not in log.read_text()


def _is_compiling(agent: int) -> bool:
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return any(COMPILER_MODULE.encode() in _command_line(child) for child in children)


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_over_tls_it_also_serves_metrics_and_health(tmp_path: Path, tls: tuple[str, ...]) -> None:
    log = tmp_path / "log"
    options = ("--listen", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0", *tls)
    with running_agent(*options, "--log-format", "json", log=log) as process:
        text = log.read_text()
        metrics = text.split("metrics on ")[1].split('"')[0]
        address = text.split("serving on ")[1].split(" ")[0]
        with urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
            assert b'latencyprobe_module_loaded{module="rx"} 0.0' in answer.read()
        with urlopen(f"http://{metrics}/readyz", timeout=10) as answer:
            assert answer.status == 200
        pki = tmp_path / "pki"
        credentials = grpc.ssl_channel_credentials(
            *(
                (pki / name).read_bytes()
                for name in ("server-ca.crt", "operator.key", "operator.crt")
            )
        )
        target = (("grpc.ssl_target_name_override", AGENT_NAME),)
        with grpc.secure_channel(address, credentials, target) as channel:
            info = NodeAgentStub(channel).GetNodeInfo(pb.GetNodeInfoRequest(), timeout=patient(60))
        assert info.kernel_release == os.uname().release
        process.terminate()
        assert process.wait(timeout=patient(60)) == 0


def test_a_flood_of_idle_connections_leaves_metrics_and_measuring_alone(tmp_path: Path) -> None:
    path, log = tmp_path / "s" / "agent.sock", tmp_path / "log"
    options = ("--socket", str(path), "--metrics-address", "127.0.0.1:0")
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(running_agent(*options, log=log))
        port = int(log.read_text().split("metrics on 127.0.0.1:")[1].split()[0])
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{path}"))
        stub = NodeAgentStub(channel)
        stub.Apply(state(probe(pid=os.getpid())), timeout=patient(60))
        before = _descriptors(process.pid)
        most = before
        flood = []
        for number in range(2000):
            silent = socket.create_connection(("127.0.0.1", port), timeout=patient(30))
            flood.append(stack.enter_context(silent))
            if number % 100 == 99:
                with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=patient(30)) as answer:
                    assert b"latencyprobe_targets" in answer.read()
                most = max(most, _descriptors(process.pid))
        stream = stub.WatchReports(iter([pb.WatchReportsRequest()]), timeout=patient(60))
        target = next(each for report in stream for one in report.probes for each in one.targets)
        assert target.status.state == pb.TargetStatus.ATTACHED
        stream.cancel()
        assert most <= before + MAX_CONNECTIONS + 1
        for silent in flood:
            with contextlib.suppress(ConnectionResetError):
                assert silent.recv(1) == b""
        until(lambda: _descriptors(process.pid) <= before, "the end of the connections")


def test_an_agent_without_free_descriptors_keeps_its_targets_and_recovers_by_itself(
    tmp_path: Path,
) -> None:
    path, log = tmp_path / "s" / "agent.sock", tmp_path / "log"
    with (
        made_cgroup() as settled,
        made_cgroup() as late,
        sleeper(cgroup=settled) as process,
        sleeper(cgroup=late),
        running_agent("--socket", str(path), log=log) as agent,
        grpc.insecure_channel(f"unix:{path}") as channel,
    ):
        stub = NodeAgentStub(channel)
        until(lambda: str(process.pid) in (settled / "cgroup.procs").read_text(), "its start")
        desired = state(probe())
        desired.probes[0].targets[0].cgroup_path = os.fsencode(settled)
        stub.Apply(desired, timeout=patient(120))
        reports = stub.WatchReports(iter([pb.WatchReportsRequest()]), timeout=patient(300))
        _states_until(reports, {"t": pb.TargetStatus.ATTACHED})
        _, most = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (3, most))
        desired.generation += 1
        desired.probes[0].targets.add(id="late", cgroup_path=os.fsencode(late))
        result = stub.Apply(desired, timeout=patient(120))
        failed = {each.id: each.state for each in result.probes[0].targets}
        assert failed == {"t": pb.TargetStatus.ATTACHED, "late": pb.TargetStatus.FAILED}
        assert "Too many open files" in result.probes[0].targets[1].message
        # The settled one is polled without descriptors, too.
        until(lambda: log.read_text().count("Too many open files") >= 2, "a poll in vain")
        _states_until(reports, failed)
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (most, most))
        _states_until(reports, dict.fromkeys(failed, pb.TargetStatus.ATTACHED))
    assert "Traceback" not in log.read_text()


def test_an_agent_removes_what_a_killed_one_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: tuple[str, ...]
) -> None:
    log = tmp_path / "log"
    options = ("--listen", "127.0.0.1:0", *tls)
    # Short: the path of a socket in it has at most 107 bytes.
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        monkeypatch.setenv("TMPDIR", name)
        with running_agent(*options, log=log) as killed:
            (left,) = temporary.iterdir()
            killed.kill()
            killed.wait()
        assert left.exists()
        with running_agent(*options, log=log):
            assert "temporary folders that killed processes had left behind" in log.read_text()
            (ours,) = temporary.iterdir()
            assert ours != left


FULL_DISK = """
for directory in /tmp /var/tmp /usr/tmp; do
    if [ -d $directory ]; then mount -t tmpfs -o size=4k,nr_inodes=1 none $directory; fi
done
exec "$@"
"""


@pytest.mark.own_build
def test_a_full_disk_is_named_and_leaves_the_state_before(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # Not in one of the directories that are full.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, log.open("wb") as stderr:
        path = Path(folder, "s", "agent.sock")
        command = ["unshare", "--mount", "sh", "-c", FULL_DISK, "sh", *AGENT, "--socket", str(path)]
        environment = {key: text for key, text in os.environ.items() if key != "TMPDIR"}
        with (
            subprocess.Popen(command, stderr=stderr, env=environment) as process,
            grpc.insecure_channel(f"unix:{path}") as channel,
        ):
            try:
                until(lambda: "serving on" in log.read_text(), "serving")
                stub = NodeAgentStub(channel)
                before = stub.Apply(state(), timeout=patient(60))
                with pytest.raises(grpc.RpcError) as refused:
                    stub.Apply(state(probe(), generation=2), timeout=patient(60))
                message = refused.value.details() or ""
                assert "/tmp: " in message
                assert "No space left on device (ENOSPC); the disk is full" in message
                stream = stub.WatchReports(iter([pb.WatchReportsRequest()]), timeout=patient(60))
                assert next(stream).generation == before.generation
                stream.cancel()
            finally:
                process.kill()
    assert "Traceback" not in log.read_text()


@pytest.mark.own_build
def test_a_compiler_with_too_little_memory_fails_alone_and_works_once_there_is_enough(
    tmp_path: Path,
) -> None:
    path, log = tmp_path / "s" / "agent.sock", tmp_path / "log"
    options = ("--socket", str(path), "--object-cache", "none")
    with (
        made_memory_cgroup() as group,
        running_agent(*options, log=log) as agent,
        grpc.insecure_channel(f"unix:{path}") as channel,
    ):
        (group / "cgroup.procs").write_text(str(agent.pid))
        stub = NodeAgentStub(channel)
        stub.Apply(state(), timeout=patient(60))
        cgroup = MemoryCgroup.of_this_process(text=Path(f"/proc/{agent.pid}/cgroup").read_text())
        assert cgroup is not None
        # Python starts in the 48 MiB that are left to the compiler, and no module compiles.
        set_limit(group, 200 * MEBIBYTE)
        room = cgroup.room()
        assert room is not None
        set_limit(group, 200 * MEBIBYTE - room.free_bytes + 96 * MEBIBYTE)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Apply(state(probe(modules=("rx",)), generation=2), timeout=patient(120))
        message = refused.value.details() or ""
        assert "compiling took more memory than the " in message
        assert "raise it to at least 320 MiB" in message
        set_limit(group, 640 * MEBIBYTE)
        result = stub.Apply(state(probe(modules=("rx",)), generation=3), timeout=patient(300))
        assert result.probes[0].targets[0].state == pb.TargetStatus.ATTACHED
        assert not cgroup.oom_kills()
    assert "Traceback" not in log.read_text()


def _states_until(reports: Iterator[pb.Report], wanted: Mapping[str, int]) -> None:
    """Take reports until the targets' states are these."""
    seen: dict[str, int] = {}
    for report in reports:
        for one in report.probes:
            seen = {each.status.id: each.status.state for each in one.targets}
        if seen == wanted:
            return
    pytest.fail(f"the stream has ended; the last states were {seen}")


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "s" / "agent.sock"
    command = [*AGENT, "--socket", str(path), "--exit-with-parent"]
    # The parent starts the agent, tells its PID, and is killed once the agent serves.
    code = (
        "import subprocess, time, sys\n"
        f"child = subprocess.Popen({command!r}, stderr=open({str(log)!r}, 'w'))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen(python(code), stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: "serving on" in log.read_text(), "serving")
        parent.kill()
    until(lambda: _has_exited(child), "the agent's end")
    assert "stopped" in log.read_text()


def _has_exited(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --listen HOST:PORT or --socket PATH"),
        (("--listen", "127.0.0.1:0", "--socket", "/tmp/s"), "give either --listen"),
        (("--listen", "127.0.0.1:0"), "--listen needs --ca-file, --cert-file and --key-file"),
        (("--listen", "127.0.0.1"), "'127.0.0.1' is not HOST:PORT"),
        (("--listen", "127.0.0.1:70000"), "'127.0.0.1:70000' is not HOST:PORT"),
        (("--listen", "::1:0"), "has an IPv6 address without brackets"),
        (("--socket", "relative.sock"), "give an absolute path"),
        (("--socket", "/" + "x" * 108), "longer than 107 bytes"),
        (("--socket", "/tmp/agent.sock"), "/tmp is accessible to other users"),
        (("--socket", "/no/such/agent.sock"), "/no/such: No such file or directory"),
        (
            ("--socket", "/s/a", "--host-netns", "/no/such"),
            "cannot read --host-netns /no/such: No such file or directory. In a pod",
        ),
        (("--log-level", "loud"), "Invalid value for '--log-level'"),
    ],
)
def test_invalid_options_are_refused(options: tuple[str, ...], message: str) -> None:
    assert message in _refusal(*options)


def test_a_port_that_is_taken_is_said(tls: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = _refusal("--listen", f"127.0.0.1:{port}", *tls)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in message


def test_a_missing_file_is_said(tmp_path: Path, tls: tuple[str, ...]) -> None:
    (tmp_path / "pki" / "agent.key").unlink()
    message = _refusal("--listen", "127.0.0.1:0", *tls)
    assert "agent.key: No such file or directory" in message


@pytest.mark.parametrize(
    ("dropped", "named"),
    [("-sys_ptrace", ["CAP_SYS_PTRACE"]), ("-sys_admin,-bpf", ["CAP_BPF"])],
)
def test_a_missing_capability_is_named(tmp_path: Path, dropped: str, named: list[str]) -> None:
    setpriv = ("setpriv", f"--bounding-set={dropped}")
    message = _refusal("--socket", str(tmp_path / "s/a"), prefix=setpriv)
    assert all(name in message for name in named)
