"""Situations: what happens, what is true of it, and what each end should be answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from tests.live.situations.answers import HEALTHY, HEALTHY_AND_QUIET, Answer
from tests.live.situations.scenes import Figures, MakeScene

# By witness: "client" and "server" are the programs' own accounts, "client_tcp" and "server_tcp"
# the growth of the kernel's counters in their namespaces; the others are the scene's.
Facts = Mapping[str, Figures]
SERVERS = "tests.live.situations.servers"
CLIENTS = "tests.live.situations.clients"


class End(StrEnum):
    """The end that is the target of a measurement."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Program:
    """A role of a module of programs, with its options."""

    module: str
    role: str
    options: Mapping[str, object] = field(default_factory=dict)


def server(role: str, **options: object) -> Program:
    """A server; it gets its pod's address."""
    return Program(SERVERS, role, options)


def client(role: str, **options: object) -> Program:
    """A client; it gets the server's address."""
    return Program(CLIENTS, role, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One thing that happens, with one cause.

    `was_made`: whether the facts show that it happened; else it says nothing of the verdict.
    `truth`: the facts as a person would say them, a format. `beside`: programs in a cgroup of
    their own. `is_prompt`: other load of the machine does not make its programs late. `name`,
    `about`: of the function that makes it.
    """

    scene: MakeScene
    server: Program
    client: Program
    was_made: Callable[[Facts], bool]
    truth: str
    from_client: Answer
    from_server: Answer
    beside: tuple[Program, ...] = ()
    modules: tuple[Module, ...] = DEFAULT_MODULES
    is_prompt: bool = True
    name: str = ""
    about: str = ""

    @property
    def is_control(self) -> bool:
        """Whether it is healthy traffic."""
        return self.from_client in (HEALTHY, HEALTHY_AND_QUIET)

    def answer(self, end: End) -> Answer:
        """What this end should be answered."""
        return self.from_client if end is End.CLIENT else self.from_server


CATALOGUE: dict[str, Situation] = {}


def situation(make: Callable[[], Situation]) -> Callable[[], Situation]:
    """Add a situation to the catalogue, by the function's name and docstring."""
    made = replace(make(), name=make.__name__, about=(make.__doc__ or "").strip())
    if made.name in CATALOGUE:
        raise ValueError(f"there are two situations called {made.name}")
    CATALOGUE[made.name] = made
    return make
