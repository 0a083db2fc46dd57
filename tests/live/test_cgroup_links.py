"""Our programs on cgroups beside those of others, which run as often as without ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.programs import counting_runs
from latencyprobe_agent.kernel.runtime import cgroup_links
from latencyprobe_agent.kernel.runtime.cgroup_links import CgroupLinks, CgroupProgram, topmost
from tests.live.foreign_programs import Flags, Foreign, Kind, connect_once, foreign, on_cgroup
from tests.live.loaded_programs import wait_until_gone
from tests.live.pods import cgroup, unified_cgroup_root


@dataclass(frozen=True, slots=True)
class Scene:
    """A pod's cgroup below another one, a program of ours and one of another, of one kind."""

    kind: Kind
    parent: Path
    directory: Path
    links: CgroupLinks
    ours: Foreign
    theirs: Foreign

    def follow(self) -> None:
        self.links.follow([str(self.directory)])

    @property
    def is_attached(self) -> bool:
        return self.ours.number in on_cgroup(self.directory, self.kind)

    def runs(self) -> tuple[int, int]:
        """How often ours and theirs run for one connect in the scene."""
        before = self.ours.runs, self.theirs.runs
        connect_once(self.directory)
        return self.ours.runs - before[0], self.theirs.runs - before[1]

    def place(self, name: str) -> Path:
        return self.parent if name == "parent" else self.directory


@pytest.fixture(autouse=True)
def _counting() -> Iterator[None]:
    with counting_runs():
        yield


@contextmanager
def nested(parent: Path, name: str) -> Iterator[Path]:
    with cgroup(f"{parent.name}/{name}") as made:
        yield made


@pytest.fixture(params=list(Kind), ids=[kind.name for kind in Kind])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    kind: Kind = request.param
    with ExitStack() as stack:
        parent = stack.enter_context(cgroup(f"lptest-{os.getpid()}-links"))
        directory = stack.enter_context(nested(parent, "pod"))
        ours, theirs = (stack.enter_context(foreign(kind)) for _ in range(2))
        links = CgroupLinks([CgroupProgram(ours.descriptor, kind.attach_type)])
        stack.callback(links.close)
        yield Scene(kind, parent, directory, links, ours, theirs)


def test_a_program_runs_for_its_cgroup_and_those_below_it_and_for_no_other(scene: Scene) -> None:
    scene.follow()
    assert scene.links.refused == {}
    ours, _ = scene.runs()
    assert ours > 0
    with nested(scene.directory.parent, "other") as other:
        before = scene.ours.runs
        connect_once(other)
        assert scene.ours.runs == before
    with cgroup(f"{scene.parent.name}/pod/inner") as inner:
        connect_once(inner)
        assert scene.ours.runs == before + ours


@pytest.mark.parametrize("place", ["parent", "itself"])
@pytest.mark.parametrize("flags", list(Flags))
def test_programs_that_others_attached_before_run_as_before(
    scene: Scene, place: str, flags: Flags
) -> None:
    scene.theirs.attach(scene.place(place), flags)
    _, before = scene.runs()
    assert before > 0
    scene.follow()
    ours, theirs = scene.runs()
    assert theirs == before
    assert bool(ours) is scene.is_attached is (flags is Flags.MULTI)
    assert set(scene.links.refused) == (set() if scene.is_attached else {str(scene.directory)})


@pytest.mark.parametrize("flags", list(Flags))
def test_programs_that_others_attach_above_ours_run_from_the_next_check_on(
    scene: Scene, flags: Flags
) -> None:
    scene.follow()
    scene.theirs.attach(scene.parent, flags)
    scene.follow()
    ours, theirs = scene.runs()
    assert theirs > 0
    assert bool(ours) is scene.is_attached is (flags is Flags.MULTI)
    scene.links.close()
    assert scene.runs() == (0, theirs)


@pytest.mark.parametrize("flags", list(Flags))
def test_on_the_same_cgroup_the_kernel_lets_only_those_follow_that_share_it(
    scene: Scene, flags: Flags
) -> None:
    scene.follow()
    if flags is not Flags.MULTI:
        with pytest.raises(PermissionError):
            scene.theirs.attach(scene.directory, flags)
        return
    scene.theirs.attach(scene.directory, flags)
    scene.follow()
    ours, theirs = scene.runs()
    assert ours == theirs > 0


@pytest.mark.parametrize("place", ["parent", "itself"])
@pytest.mark.parametrize("flags", list(Flags))
def test_when_others_detach_ours_runs(scene: Scene, place: str, flags: Flags) -> None:
    scene.theirs.attach(scene.place(place), flags)
    scene.follow()
    scene.theirs.detach(scene.place(place))
    scene.follow()
    ours, theirs = scene.runs()
    assert ours > theirs == 0
    assert scene.links.refused == {}


def test_a_refusal_names_the_program_that_prevents_ours(scene: Scene) -> None:
    scene.theirs.attach(scene.parent, Flags.OVERRIDE)
    scene.follow()
    assert scene.links.refused == {
        str(scene.directory): f"program {scene.theirs.number} above it was attached without "
        "BPF_F_ALLOW_MULTI"
    }
    assert scene.links.attached == frozenset()


def test_a_program_on_a_cgroup_that_cannot_be_read_is_left_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.theirs.attach(scene.parent, Flags.MULTI)
    monkeypatch.setattr(cgroup_links, "_levels", lambda directory: (directory, directory))
    scene.follow()
    assert scene.links.refused == {
        str(scene.directory): f"program {scene.theirs.number} is on a cgroup that cannot be read"
    }
    ours, theirs = scene.runs()
    assert theirs > ours == 0


def test_a_cgroup_below_another_has_the_programs_once(scene: Scene) -> None:
    scene.follow()
    once, _ = scene.runs()
    scene.links.follow([str(scene.directory), str(scene.parent)])
    assert scene.links.attached == {str(scene.parent)}
    assert scene.runs() == (once, 0)
    scene.follow()
    assert scene.links.attached == {str(scene.directory)}
    assert scene.runs() == (once, 0)


@pytest.mark.parametrize("place", ["parent", "itself"])
def test_programs_of_others_run_as_before_when_ours_comes_and_goes(
    scene: Scene, place: str
) -> None:
    scene.theirs.attach(scene.place(place), Flags.MULTI)
    _, before = scene.runs()
    for _ in range(2):
        scene.follow()
        ours, theirs = scene.runs()
        assert (ours > 0, theirs) == (True, before)
        scene.links.follow([])
        assert scene.runs() == (0, before)


def test_links_that_are_no_longer_wanted_are_detached(scene: Scene) -> None:
    scene.follow()
    scene.links.follow([])
    assert not scene.is_attached
    assert scene.runs() == (0, 0)


def test_a_removed_cgroup_is_no_refusal_and_a_new_one_gets_the_programs(scene: Scene) -> None:
    directory = scene.parent / "short"
    directory.mkdir()
    scene.links.follow([str(directory)])
    directory.rmdir()
    scene.links.follow([str(directory)])
    assert scene.links.refused == {}
    assert scene.links.attached == frozenset()
    with nested(scene.parent, "short"):
        scene.links.follow([str(directory)])
        directory.rmdir()
        directory.mkdir()
        scene.links.follow([str(directory)])
        assert on_cgroup(directory, scene.kind) == (scene.ours.number,)


def test_the_root_of_the_hierarchy_gets_no_program(scene: Scene) -> None:
    root = str(unified_cgroup_root())
    scene.links.follow([root])
    assert set(scene.links.refused) == {root}
    assert scene.ours.number not in on_cgroup(Path(root), scene.kind)


KILLED = """
import sys, time
from latencyprobe_agent.kernel.runtime import cgroup_links
from latencyprobe_agent.kernel.runtime.cgroup_links import CgroupLinks, CgroupProgram
from tests.live.foreign_programs import Foreign, Kind
kind = Kind[sys.argv[2]]
program = Foreign(kind)
links = CgroupLinks([CgroupProgram(program.descriptor, kind.attach_type)])
links.follow([sys.argv[1]])
print(program.number, flush=True)
time.sleep(600)
"""


def test_after_a_kill_nothing_stays(scene: Scene) -> None:
    command = [sys.executable, "-c", KILLED, str(scene.directory), scene.kind.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        assert on_cgroup(scene.directory, scene.kind) == (number,)
        process.send_signal(signal.SIGKILL)
    wait_until_gone({number})
    assert on_cgroup(scene.directory, scene.kind) == ()


def test_only_the_topmost_of_nested_cgroups_is_taken() -> None:
    assert topmost(["/c/a/b", "/c/a", "/c/ab", "/c/d/e"]) == {"/c/a", "/c/ab", "/c/d/e"}
