"""Watches report new and removed entries, and say so where the kernel refuses them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.desired import ContainerSelector, NetnsSelector, PodSelector, Selector
from latencyprobe_agent.targets.facts import TargetFacts, pending
from latencyprobe_agent.targets.inotify import (
    IN_CREATE,
    IN_DELETE,
    IN_MODIFY,
    IN_Q_OVERFLOW,
    Inotify,
    InotifyEvent,
)
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.targets.watches import Changes, PathChange, Watches
from tests.unit.agent.scripted import Clock

UID = "0b7e3f0c-1d2e-4f5a-8b9c-0d1e2f3a4b5c"
OTHER = "5d0c8f4e-7a3b-4c1d-9e2f-6b8a0d1c2e3f"
POD = PodSelector(UID)
MADE_AND_REMOVED = IN_CREATE | IN_DELETE
MADE = TargetFacts(TargetState.PENDING, cgroup_ids=frozenset({7}))
ATTACHED = TargetFacts(TargetState.ATTACHED, pids=(1,), netns=frozenset({9}))


def test_entries_that_are_made_and_removed_in_a_directory_are_reported(tmp_path: Path) -> None:
    watches = Watches()
    assert watches.fileno() is None
    assert watches.follow({str(tmp_path): MADE_AND_REMOVED})
    (tmp_path / "a").mkdir()
    (tmp_path / "a").rmdir()
    here = str(tmp_path)
    assert watches.take() == Changes((PathChange(here, "a", True), PathChange(here, "a")))
    assert watches.take() == Changes()


def test_a_file_that_changes_is_reported_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "cgroup.events"
    path.write_text("populated 0\n")
    watches = Watches()
    watches.follow({str(path): IN_MODIFY})
    with path.open("a") as file:
        file.write("populated 1\n")
    assert watches.take().changes == (PathChange(str(path)),)


def test_only_the_wanted_paths_are_watched(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    watches = Watches()
    watches.follow({str(one): MADE_AND_REMOVED})
    assert watches.follow({str(other): MADE_AND_REMOVED})
    assert not watches.follow({str(other): MADE_AND_REMOVED})
    (one / "a").mkdir()
    (other / "b").mkdir()
    assert [change.name for change in watches.take().changes] == ["b"]


def test_a_directory_that_is_made_again_is_watched_again(tmp_path: Path) -> None:
    directory = tmp_path / "pods"
    wanted = {str(directory): MADE_AND_REMOVED}
    watches = Watches()
    assert not watches.follow(wanted)
    for _ in range(2):
        directory.mkdir()
        assert watches.follow(wanted)
        directory.rmdir()
        watches.take()
    assert not watches.problem


class Refusing(Inotify):
    """Refuses what a user has used up."""

    code = 0

    def add(self, path: str, mask: int) -> int:
        if self.code:
            raise OSError(self.code, os.strerror(self.code), path)
        return super().add(path, mask)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "(ENOSPC); raise fs.inotify.max_user_watches"),
        (errno.EMFILE, "(EMFILE); raise fs.inotify.max_user_instances"),
        (errno.EACCES, "Permission denied (EACCES)"),
    ],
)
def test_a_refused_watch_is_a_problem_until_it_is_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    monkeypatch.setattr(Refusing, "code", code)
    watches = Watches(Refusing)
    assert not watches.follow({str(tmp_path): IN_CREATE})
    assert advice in watches.problem
    monkeypatch.setattr(Refusing, "code", 0)
    assert watches.follow({str(tmp_path): IN_CREATE})
    assert not watches.problem


def test_a_refused_instance_is_a_problem(tmp_path: Path) -> None:
    def refused() -> Inotify:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "inotify_init1")

    watches = Watches(refused)
    watches.follow({str(tmp_path): IN_CREATE})
    assert "max_user_instances" in watches.problem
    assert watches.fileno() is None
    assert watches.take() == Changes()


class ScriptedWatches(Watches):
    """Reports what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.news = Changes()
        self.followed: set[str] = set()

    def follow(self, wanted: object) -> bool:
        assert isinstance(wanted, dict)
        added = wanted.keys() - self.followed
        self.followed = set(wanted)
        return bool(added)

    def take(self) -> Changes:
        news, self.news = self.news, Changes()
        return news


class Watched:
    """A resolver with these targets, whose facts and watches the test sets."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *selectors: Selector, host_netns: int = 0
    ) -> None:
        self.clock = Clock()
        self.watches = ScriptedWatches()
        self.resolver = Resolver(clock=self.clock, watches=self.watches, host_netns=host_netns)
        self.found: dict[Selector, TargetFacts] = {}
        self.polls: list[Selector] = []
        self.failure: OSError | None = None
        monkeypatch.setattr(self.resolver, "_tracker_of", self._tracker)
        self.resolver.track(selectors)
        self.resolver.refresh()  # polls again, since the watches are new
        self.polls.clear()

    def _tracker(self, selector: Selector) -> object:
        watched = self

        class Tracker:
            def poll(self) -> TargetFacts:
                watched.polls.append(selector)
                if watched.failure is not None:
                    raise watched.failure
                return watched.found.get(selector, pending("no cgroup yet"))

        return Tracker()

    def report(self, *changes: PathChange, is_incomplete: bool = False) -> bool:
        self.watches.news = Changes(changes, is_incomplete)
        return self.resolver.take_changes()

    def pace(self) -> float:
        """Poll once; return the time until the next poll."""
        self.resolver.refresh()
        assert self.resolver.next_poll is not None
        return self.resolver.next_poll - self.clock.now


def test_a_named_pod_is_polled_as_soon_as_its_cgroup_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, POD, PodSelector(OTHER))
    assert watched.report(PathChange("/kubepods", f"pod{UID}", True))
    watched.found[POD] = MADE
    assert watched.resolver.refresh()
    assert watched.polls == [POD]


@pytest.mark.parametrize(
    "name", ["pod00000000-0000-4000-8000-000000000000", "system.slice", "x" * 64]
)
def test_cgroups_of_pods_that_are_not_named_cost_no_poll(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    watched = Watched(monkeypatch, POD)
    assert not watched.report(PathChange("/kubepods", name, True))
    watched.resolver.refresh()
    assert watched.polls == []


def test_a_pod_that_begins_is_polled_often_until_its_sandbox_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, POD)
    watched.found[POD] = MADE
    watched.report(PathChange("/kubepods", f"pod{UID}", True))
    assert watched.pace() <= 0.01
    watched.clock.now += 5  # a busy node
    assert watched.pace() <= 0.05
    watched.found[POD] = ATTACHED
    watched.clock.now += 5
    assert watched.pace() >= 1


def test_a_pod_whose_sandbox_does_not_start_is_not_polled_often_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, POD)
    watched.found[POD] = MADE
    watched.report(PathChange("/kubepods", f"pod{UID}", True))
    watched.clock.now += 60
    assert watched.pace() >= 0.2


def test_many_pods_that_begin_together_share_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    pods = [PodSelector(f"{number:032x}") for number in range(100)]
    watched = Watched(monkeypatch, *pods)
    watched.found = dict.fromkeys(pods, MADE)
    watched.report(*(PathChange("/kubepods", f"pod{pod.pod_uid}", True) for pod in pods))
    watched.resolver.refresh()
    watched.polls.clear()
    end = watched.clock.now + 0.5
    while watched.resolver.next_poll is not None and watched.resolver.next_poll <= end:
        watched.clock.now = watched.resolver.next_poll
        watched.resolver.refresh()
    assert len(watched.polls) <= 0.5 * 1000


def test_an_attached_pod_is_not_polled_with_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, POD)
    watched.found[POD] = ATTACHED
    watched.report(PathChange("/kubepods", f"pod{UID}", True))
    watched.resolver.refresh()
    watched.polls.clear()
    for _ in range(100):
        watched.report(PathChange("/kubepods", f"pod{UID}"))
        watched.clock.now += 0.001
        watched.resolver.refresh()
    assert len(watched.polls) <= 1


def test_a_pod_that_was_gone_is_polled_again_when_its_cgroup_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, POD)
    watched.found[POD] = TargetFacts(TargetState.GONE)
    watched.clock.now += 1
    watched.resolver.refresh()
    assert watched.resolver.next_poll is None
    watched.found[POD] = MADE
    watched.report(PathChange("/kubepods", f"pod{UID}", True))
    assert watched.resolver.refresh()


def test_a_pod_that_comes_and_goes_before_a_poll_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, POD)
    made, removed = PathChange("/kubepods", f"pod{UID}", True), PathChange("/kubepods", f"pod{UID}")
    watched.report(made, removed)
    watched.resolver.refresh()
    assert watched.resolver.missed_pods == 1
    watched.found[POD] = MADE
    watched.report(made)
    watched.resolver.refresh()
    assert watched.resolver.missed_pods == 1


def test_a_pod_that_cannot_be_polled_now_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, POD)
    watched.failure = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    watched.report(PathChange("/kubepods", f"pod{UID}", True))
    watched.resolver.refresh()
    watched.found[POD], watched.failure = MADE, None
    watched.clock.now += 60
    watched.resolver.refresh()
    assert watched.resolver.facts_of(POD) == MADE
    assert watched.resolver.missed_pods == 0


def test_dropped_changes_have_all_targets_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, POD, PodSelector(OTHER))
    assert watched.report(is_incomplete=True)
    watched.resolver.refresh()
    assert set(watched.polls) == {POD, PodSelector(OTHER)}


def test_the_kernels_mark_of_dropped_changes_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watches = Watches()
    watches.follow({str(tmp_path): IN_CREATE})
    overflow = InotifyEvent(-1, IN_Q_OVERFLOW, "")
    monkeypatch.setattr(Inotify, "read", lambda _: [overflow])
    assert watches.take().is_incomplete


def test_a_containers_pod_that_is_made_has_the_container_polled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    container = ContainerSelector(UID, "ab" * 32)
    watched = Watched(monkeypatch, container)
    assert watched.report(PathChange("/kubepods", f"pod{UID}", True))
    watched.resolver.refresh()
    assert watched.polls == [container]


def test_a_namespace_that_is_made_again_at_its_path_is_polled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blue = NetnsSelector("/run/netns/blue")
    watched = Watched(monkeypatch, blue)
    assert "/run/netns" in watched.watches.followed
    assert not watched.report(PathChange("/run/netns", "green", True))
    assert watched.report(PathChange("/run/netns", "blue", True))
    watched.resolver.refresh()
    assert watched.polls == [blue]


def test_a_pod_that_seems_to_be_in_the_nodes_namespace_is_polled_often_at_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A runtime joins the cgroup first. A pod with hostNetwork stays there."""
    watched = Watched(monkeypatch, POD, host_netns=9)
    watched.found[POD] = ATTACHED
    watched.report(PathChange("/kubepods", f"pod{UID}", True))
    assert watched.pace() <= 0.01
    watched.clock.now += 60
    assert watched.pace() >= 1
