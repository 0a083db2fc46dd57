"""Pods are listed, watched, and followed through whatever the API server does."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from latencyprobe_operator.kube.cluster import ApiError, Cluster
from latencyprobe_operator.kube.pods import PodsChange, PodSet, PodWatches
from tests.unit.operator_.waiting import until
from tools.fakes.api import FakeApi
from tools.fakes.samples import pod_body


class Ears:
    """Hears what happens to pods."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.removed: list[str] = []
        self.told = 0

    def __call__(self, change: PodsChange) -> None:
        """Keep it."""
        self.told += 1
        self.changed += [pod.name for pod in change.changed]
        self.removed += change.removed


@pytest.fixture
def api() -> FakeApi:
    """An API server with one pod."""
    api = FakeApi()
    api.set(pod_body("a"))
    return api


@pytest.fixture
async def cluster(api: FakeApi) -> AsyncIterator[Cluster]:
    """A client of that server."""
    async with api.serve() as cluster:
        yield cluster


@pytest.fixture
async def watches(cluster: Cluster) -> AsyncIterator[PodWatches]:
    """Watches of that server's pods."""
    watches = PodWatches(cluster)
    yield watches
    await watches.close()


async def watched(watches: PodWatches, api: FakeApi, ears: Ears) -> PodSet:
    """A set of pods whose watch is open."""
    pods = watches.subscribe("shop", "app in (a,b),!canary", ears)
    await until(lambda: api.watching, what=lambda: pods)
    return pods


async def test_pods_are_listed_and_then_followed(api: FakeApi, watches: PodWatches) -> None:
    ears = Ears()
    pods = await watched(watches, api, ears)
    assert ears.changed == ["a"]
    api.set(pod_body("b"))
    api.set(pod_body("b", run=2))
    api.remove("uid-a")

    await until(lambda: ears.removed, what=lambda: ears.__dict__)
    assert ears.changed == ["a", "b", "b"]
    assert list(pods.pods) == ["uid-b"]
    assert api.watches[0][0] == "app in (a,b),!canary"


async def test_a_change_that_is_none_of_ours_is_not_told(api: FakeApi, watches: PodWatches) -> None:
    ears = Ears()
    await watched(watches, api, ears)
    api.set({**pod_body("a"), "other": "x"})
    api.set(pod_body("b"))

    await until(lambda: "b" in ears.changed, what=lambda: ears.__dict__)
    assert ears.changed == ["a", "b"]


async def test_a_long_list_comes_in_pages(api: FakeApi, watches: PodWatches) -> None:
    api.page = 3
    for index in range(10):
        api.set(pod_body(f"p{index}"))
    pods = await watched(watches, api, Ears())

    assert len(pods.pods) == 11
    assert api.lists == 4


async def test_a_pod_longer_than_any_buffer_is_read(api: FakeApi, watches: PodWatches) -> None:
    ears = Ears()
    await watched(watches, api, ears)
    api.set({**pod_body("big"), "padding": "x" * 3_000_000})

    await until(lambda: "big" in ears.changed, what=lambda: ears.__dict__)


async def test_a_watch_that_ends_goes_on_where_it_was(api: FakeApi, watches: PodWatches) -> None:
    await watched(watches, api, Ears())
    bookmark = {"metadata": {"resourceVersion": "12345"}}
    api.send({"type": "BOOKMARK", "object": bookmark})
    api.send(None)

    await until(lambda: len(api.watches) == 2, what=lambda: api.watches)
    assert api.watches[1][1] == "12345"
    assert api.lists == 1


async def test_what_was_missed_is_told_after_a_new_list(api: FakeApi, watches: PodWatches) -> None:
    ears = Ears()
    pods = await watched(watches, api, ears)
    api.set(pod_body("b"), quietly=True)
    api.remove("uid-a", quietly=True)
    api.expire()

    await until(lambda: api.lists == 2 and api.watching, what=lambda: api.watches)
    assert (ears.changed, ears.removed) == (["a", "b"], ["uid-a"])
    assert list(pods.pods) == ["uid-b"]


@pytest.mark.parametrize(
    "refusal", [(503, "etcd is away"), (429, "too many requests"), (403, "forbidden: no roles yet")]
)
async def test_a_server_in_trouble_is_asked_again_and_the_pods_stand(
    api: FakeApi, watches: PodWatches, refusal: tuple[int, str]
) -> None:
    ears = Ears()
    pods = await watched(watches, api, ears)
    api.refuse = refusal
    api.send(None)
    await until(lambda: not api.watching, what=lambda: api.watches)
    assert list(pods.pods) == ["uid-a"]
    assert pods.refusal is None
    api.refuse = None

    await until(lambda: api.watching, what=lambda: api.watches)
    assert ears.removed == []


async def test_an_invalid_selector_is_told_in_the_servers_words(
    api: FakeApi, watches: PodWatches
) -> None:
    api.refuse = (400, "unable to parse requirement")
    ears = Ears()
    pods = watches.subscribe("shop", "x" * 70, ears)

    await until(lambda: ears.told, what=lambda: pods)
    assert pods.refusal
    assert pods.refusal.invalid
    assert pods.refusal.message == "unable to parse requirement"


async def test_a_missing_permission_is_no_invalid_selector(
    api: FakeApi, watches: PodWatches
) -> None:
    api.refuse = (403, "pods is forbidden")
    ears = Ears()
    pods = watches.subscribe("shop", "", ears)

    await until(lambda: ears.told, what=lambda: pods)
    assert pods.refusal
    assert not pods.refusal.invalid


async def test_one_watch_serves_all_who_ask_for_the_same(api: FakeApi, watches: PodWatches) -> None:
    one, other = Ears(), Ears()
    pods = await watched(watches, api, one)
    assert watches.subscribe("shop", "app in (a,b),!canary", other) is pods
    api.set(pod_body("b"))
    await until(lambda: other.changed == ["b"], what=lambda: other.__dict__)
    assert one.changed == ["a", "b"]
    assert len(api.watches) == 1

    watches.unsubscribe(pods, one)
    assert api.watching == 1
    watches.unsubscribe(pods, other)
    await until(lambda: not api.watching, what=lambda: api.watches)


async def test_a_status_is_sent_as_a_merge_patch(api: FakeApi, cluster: Cluster) -> None:
    answer = await cluster.patch_status("shop", "checkout", {"status": {"phase": "Running"}})

    assert api.patches == [{"status": {"phase": "Running"}}]
    assert answer["status"] == {"phase": "Running"}


async def test_a_refused_write_says_why(api: FakeApi, cluster: Cluster) -> None:
    api.refuse = (422, "status.phase: Unsupported value")

    with pytest.raises(ApiError, match="Unsupported value") as caught:
        await cluster.patch_status("shop", "checkout", {"status": {}})
    assert caught.value.status == 422
