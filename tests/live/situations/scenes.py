"""Scenes: where a client and a server are, and what lies between them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.live.pods import (
    Namespace,
    Pod,
    Traffic,
    cgroup,
    pods_back_to_back,
    pods_on_bridge,
    pods_on_routes,
)
from tests.live.quotas import Account, quota
from tests.live.tuns import tun

ROOT = Path(__file__).parents[3]
PROMPTLY = ("chrt", "--rr", "1")
ABSENT = "198.51.100.99"
WIRE = "tests.live.situations.wire"

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """Two pods, and what tells what happened between them.

    `host`: the node's own namespace, if it is not this machine's. `witnesses`: their figures are
    read when all has happened. `joins`,
    `client_joins`: files that the server's process joins before it starts, and the client's.
    """

    client: Pod
    server: Pod
    host: Namespace | None = None
    witnesses: Mapping[str, Callable[[], Figures]] = field(default_factory=dict)
    joins: Sequence[Path] = ()
    client_joins: Sequence[Path] = ()


MakeScene = Callable[[], AbstractContextManager[Scene]]


def start_in(
    pod: Pod,
    module: str,
    role: str,
    options: object,
    *,
    joins: Sequence[Path] = (),
    is_prompt: bool = False,
) -> Traffic:
    """Start a program of a situation in a pod; returns once it is ready.

    `is_prompt`: it has a CPU as soon as it can run, whatever else the machine does.
    """
    files = (pod.cgroup / "cgroup.procs", *joins)
    script = "".join(f"echo $$ > {file} && " for file in files)
    command = (*(PROMPTLY if is_prompt else ()), *_command(module, role, options))
    inside = f'exec nsenter --net={pod.namespace.path} "$@"'
    return _start(("sh", "-c", script + inside, "sh", *command))


def _command(module: str, role: str, options: object) -> tuple[str, ...]:
    return (sys.executable, "-m", module, role, json.dumps(options))


def _start(command: Sequence[str], descriptors: Sequence[int] = ()) -> Traffic:
    return Traffic(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            pass_fds=descriptors,
        )
    )


@contextmanager
def back_to_back() -> Iterator[Scene]:
    """Two pods, and nothing between them."""
    with pods_back_to_back() as (client, server):
        yield Scene(client, server)


@contextmanager
def beside_an_absent_address() -> Iterator[Scene]:
    """Two pods, and an address that nobody has: what is sent to it is lost on the wire."""
    with back_to_back() as scene:
        link = ("lladdr", "02:00:00:00:00:99", "dev", "eth0")
        scene.client.namespace.execute("ip", "neigh", "add", ABSENT, *link)
        yield scene


def with_sysctls(
    client: Mapping[str, str] | None = None, server: Mapping[str, str] | None = None
) -> MakeScene:
    """Pods back to back, with these settings of their namespaces."""

    @contextmanager
    def scene() -> Iterator[Scene]:
        with back_to_back() as made:
            set_sysctls(made.client.namespace, client or {})
            set_sysctls(made.server.namespace, server or {})
            yield made

    return scene


def set_sysctls(namespace: Namespace, settings: Mapping[str, str]) -> None:
    if settings:
        settings_of = (f"{name}={value}" for name, value in settings.items())
        namespace.execute("sysctl", "-qw", *settings_of)


def far_apart(rtt_ms: float | Sequence[tuple[float, float]], **losses: float) -> MakeScene:
    """A network of this round trip between two tun devices; see `wire`.

    A round trip that changes is given by its values at seconds after the first packet.
    """
    points = [(0.0, rtt_ms)] if isinstance(rtt_ms, int | float) else rtt_ms
    one_way_ms = [(at_s, rtt / 2) for at_s, rtt in points]

    @contextmanager
    def scene() -> Iterator[Scene]:
        with ExitStack() as stack:
            near = stack.enter_context(tun("near", "192.0.2.1", "192.0.2.2"))
            far = stack.enter_context(tun("far", "192.0.2.2", "192.0.2.1"))
            ends = {"near": near.descriptor, "far": far.descriptor}
            options: dict[str, object] = {**ends, "one_way_ms": one_way_ms, **losses}
            carrying = _start(_command(WIRE, "carry", options), [*ends.values()])
            stack.callback(carrying.stop)
            client, server = (
                Pod(
                    each.namespace,
                    stack.enter_context(cgroup(each.namespace.name)),
                    each.address,
                    "",
                )
                for each in (near, far)
            )
            yield Scene(client, server, witnesses={"wire": lambda: _ask(carrying)})

    return scene


def _ask(program: Traffic) -> Figures:
    program.go()
    return program.account()


def through_node(
    rules: str | Callable[[], str], settings: Mapping[str, str] | None = None
) -> MakeScene:
    """Pods behind a node that routes, and filters with these nftables rules."""

    @contextmanager
    def scene() -> Iterator[Scene]:
        with pods_on_routes(2) as (host, (client, server)):
            set_sysctls(host, settings or {})
            host.load_rules(rules if isinstance(rules, str) else rules())
            yield Scene(client, server, host, {"nft": lambda: _counted(host)})

    return scene


def _counted(host: Namespace) -> Figures:
    """The packets of the rules that count."""
    shown = subprocess.run(
        ["ip", "netns", "exec", host.name, "nft", "list", "ruleset"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {"packets": sum(map(int, re.findall(r"counter packets (\d+)", shown)))}


def behind_slow_devices(rate: str, limit: int) -> MakeScene:
    """Pods on a bridge; the device to the client sends at a limited rate."""

    @contextmanager
    def scene() -> Iterator[Scene]:
        with pods_on_bridge(2) as (host, (client, server)):
            _limit(host, "veth0", rate, limit)
            yield Scene(client, server, host, {"tbf": lambda: _queued(host, "veth0")})

    return scene


def with_slow_client(rate: str, limit: int) -> MakeScene:
    """Pods back to back; the client's own device sends at a limited rate."""

    @contextmanager
    def scene() -> Iterator[Scene]:
        with back_to_back() as made:
            inside = made.client.namespace
            _limit(inside, "eth0", rate, limit)
            yield replace(made, witnesses={"tbf": lambda: _queued(inside, "eth0")})

    return scene


def _limit(namespace: Namespace, device: str, rate: str, limit: int) -> None:
    shaping = ("root", "tbf", "rate", rate, "burst", "3200", "limit", str(limit))
    namespace.execute("tc", "qdisc", "add", "dev", device, *shaping)


def _queued(namespace: Namespace, device: str) -> Figures:
    shown = subprocess.run(
        ["tc", "-n", namespace.name, "-s", "-json", "qdisc", "show", "dev", device],
        check=True,
        capture_output=True,
    ).stdout
    figures = json.loads(shown)[0]
    return {"overlimits": figures["overlimits"], "drops": figures["drops"]}


def with_quota(percent: int, *, of_client: bool = False) -> MakeScene:
    """Pods back to back; the server, or the client, has so much of a CPU, in periods of 100 ms."""

    @contextmanager
    def scene() -> Iterator[Scene]:
        with pods_back_to_back() as (client, server):
            limited = client if of_client else server
            with quota(limited.cgroup, percent) as directory:
                joins = [] if directory == limited.cgroup else [directory / "cgroup.procs"]
                witnesses = {"cpu": lambda: _throttled(directory)}
                made = Scene(client, server, witnesses=witnesses)
                yield replace(made, client_joins=joins) if of_client else replace(made, joins=joins)

    return scene


def _throttled(directory: Path) -> Figures:
    account = Account.of(directory)
    return {"periods": account.periods, "throttled": account.throttled}
