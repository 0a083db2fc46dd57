"""A new list of pods updates the known ones in place, and loses no change, whatever breaks it."""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from latencyprobe_operator.kube import heap
from latencyprobe_operator.kube.cluster import ApiError, WatchEvent
from latencyprobe_operator.kube.informer import Change, Informer, Scope
from latencyprobe_operator.model import Pod, read_pod
from tests.unit.operator_.waiting import until
from tools.fakes.samples import Json, pod_body


class Pages:
    """A list of pods that may break after some of them."""

    def __init__(self, *names: str) -> None:
        self.pods = {name: pod_body(name) for name in names}
        self.breaks_after: int | None = None

    async def list_pods(
        self, namespace: str | None, selector: str, take: Callable[[Json], None]
    ) -> str:
        for number, body in enumerate(self.pods.values()):
            if number == self.breaks_after:
                raise ApiError(503, "", "etcd is away")
            take(body)
        return "1"

    async def watch_pods(
        self, namespace: str | None, selector: str, *, since: str
    ) -> AsyncIterator[WatchEvent]:
        await asyncio.Event().wait()
        yield WatchEvent("BOOKMARK", {}, since)


class Told:
    """An audience that keeps the changes of lists."""

    def __init__(self) -> None:
        self.changed: list[list[str]] = []
        self.removed: list[list[str]] = []

    def on_list(self, changes: Mapping[str, Change[Pod]]) -> None:
        self.changed.append(sorted(pod.name for each in changes.values() for pod in each.changed))
        self.removed.append(sorted(uid for each in changes.values() for uid in each.removed))

    def on_change(self, namespace: str, change: Change[Pod]) -> None:
        raise AssertionError("nothing is watched")

    def on_refusal(self) -> None:
        raise AssertionError("nothing is refused")


async def test_a_new_list_keeps_the_objects_of_equal_pods_and_their_store() -> None:
    api, told = Pages("a", "b", "c"), Told()
    informer = Informer(api, Scope(None), read_pod, told)
    await informer._list()
    store = informer.pods_in("shop")
    before = dict(store)
    api.pods["b"] = pod_body("b", run=2)
    del api.pods["c"]
    await informer._list()
    assert informer.pods_in("shop") is store
    assert store["uid-a"] is before["uid-a"]
    assert store["uid-b"] != before["uid-b"]
    assert store["uid-b"].labels is before["uid-b"].labels
    assert (told.changed, told.removed) == ([["a", "b", "c"], ["b"]], [[], ["uid-c"]])


@pytest.mark.parametrize("breaks_after", [0, 1, 2, 3])
async def test_the_changes_of_a_list_that_broke_are_reported_by_the_next(
    breaks_after: int,
) -> None:
    api, told = Pages("a", "b", "c", "d"), Told()
    informer = Informer(api, Scope(None), read_pod, told)
    await informer._list()
    for name in ("a", "c"):
        api.pods[name] = pod_body(name, run=2)
    del api.pods["d"]
    api.pods["e"] = pod_body("e")
    api.breaks_after = breaks_after
    with pytest.raises(ApiError):
        await informer._list()
    assert "uid-d" in informer.pods_in("shop")
    api.breaks_after = None
    await informer._list()
    assert (told.changed[1:], told.removed[1:]) == ([["a", "c", "e"]], [["uid-d"]])


async def test_a_pod_that_changed_in_a_list_that_broke_and_has_gone_is_only_removed() -> None:
    api, told = Pages("a", "b"), Told()
    informer = Informer(api, Scope(None), read_pod, told)
    await informer._list()
    api.pods["a"] = pod_body("a", run=2)
    api.breaks_after = 1
    with pytest.raises(ApiError):
        await informer._list()
    del api.pods["a"]
    api.breaks_after = None
    await informer._list()
    assert (told.changed[1:], told.removed[1:]) == ([[]], [["uid-a"]])


async def test_a_first_list_that_broke_shows_no_part_of_the_pods() -> None:
    api, told = Pages("a", "b"), Told()
    informer = Informer(api, Scope(None), read_pod, told)
    api.breaks_after = 1
    with pytest.raises(ApiError):
        await informer._list()
    assert informer.pods_in("shop") == {}
    api.breaks_after = None
    await informer._list()
    assert told.changed == [["a", "b"]]


async def test_a_list_without_any_pods_leaves_no_namespace_behind() -> None:
    api, told = Pages("a"), Told()
    informer = Informer(api, Scope(None), read_pod, told)
    await informer._list()
    api.pods.clear()
    await informer._list()
    assert informer._pods.by_namespace == {}
    assert told.removed == [[], ["uid-a"]]


async def test_free_memory_is_given_back_after_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    told = Told()
    monkeypatch.setattr(heap, "give_back", lambda: calls.append(len(told.changed)))
    running = asyncio.create_task(Informer(Pages("a"), Scope(None), read_pod, told).run())
    await until(lambda: calls, what=lambda: told.changed)
    running.cancel()
    await asyncio.wait({running})
    assert calls == [1]


def test_a_c_library_without_trimming_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    heap._trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    try:
        heap.give_back()
        heap.share_one_arena()
        heap.map_read_blocks()
    finally:
        heap._trim.cache_clear()


def shown_by_the_heap(code: str) -> str:
    """The statistics of a process of its own after this code, which holds for the whole process."""
    code = (
        "import ctypes, threading\n"
        "from latencyprobe_operator.kube import heap\n"
        "libc = ctypes.CDLL(None)\n"
        f"{code}"
        "libc.malloc_stats()\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return shown.stderr


def test_a_block_that_grpc_reads_into_is_no_part_of_the_heap() -> None:
    mapped = {
        setting: int(
            shown_by_the_heap(f"{setting}\nfor _ in range(100): libc.malloc(64 * 1024 + 32)\n")
            .split("max mmap regions =")[1]
            .split()[0]
        )
        for setting in ("pass", "heap.map_read_blocks()")
    }
    assert mapped["pass"] < 100 <= mapped["heap.map_read_blocks()"]


def test_threads_share_one_heap() -> None:
    shown = shown_by_the_heap(
        "heap.share_one_arena()\n"
        "threads = [threading.Thread(target=libc.malloc, args=(100_000,)) for _ in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    assert shown.count("Arena ") == 1
