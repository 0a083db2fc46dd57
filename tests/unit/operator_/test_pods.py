"""Pods are listed, watched, selected, and followed through whatever the API server does."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from latencyprobe_operator.kube.cluster import ApiError, Cluster
from latencyprobe_operator.kube.pods import PodsChange, PodSet, PodWatches
from latencyprobe_operator.kube.selector import LabelSelector, read_selector
from tests.unit.operator_.waiting import until
from tools.fakes.api import FakeApi
from tools.fakes.samples import Json, pod_body

EVERYTHING = read_selector({})
SELECTOR = read_selector(
    {
        "matchExpressions": [
            {"key": "app", "operator": "In", "values": ["a", "b"]},
            {"key": "canary", "operator": "DoesNotExist"},
        ]
    }
)


def selected(name: str, *, run: int = 1) -> Json:
    """A pod that SELECTOR matches."""
    return pod_body(name, run=run, labels={"app": "a"})


def app(name: str) -> LabelSelector:
    """The selector of one app."""
    return read_selector({"matchLabels": {"app": name}})


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
    api.set(selected("a"))
    return api


@pytest.fixture
async def cluster(api: FakeApi) -> AsyncIterator[Cluster]:
    """A client of that server."""
    async with api.serve() as cluster:
        yield cluster


@pytest.fixture
async def watches(cluster: Cluster) -> AsyncIterator[PodWatches]:
    """Watches of that server's pods."""
    watches = PodWatches(cluster, linger_s=0)
    yield watches
    await watches.close()


async def watched(watches: PodWatches, api: FakeApi, ears: Ears) -> PodSet:
    """A set of pods whose watch is open."""
    pods = watches.subscribe("shop", SELECTOR, ears)
    await until(lambda: api.watching, what=lambda: pods)
    return pods


async def test_pods_are_listed_and_then_followed(api: FakeApi, watches: PodWatches) -> None:
    ears = Ears()
    pods = await watched(watches, api, ears)
    assert ears.changed == ["a"]
    api.set(selected("b"))
    api.set(selected("b", run=2))
    api.remove("uid-a")

    await until(lambda: ears.removed, what=lambda: ears.__dict__)
    assert ears.changed == ["a", "b", "b"]
    assert list(pods.pods) == ["uid-b"]
    assert api.watches[0][0] == ""


async def test_a_change_of_another_set_is_not_reported(api: FakeApi, watches: PodWatches) -> None:
    ears = Ears()
    await watched(watches, api, ears)
    api.set({**selected("a"), "other": "x"})
    api.set(selected("b"))

    await until(lambda: "b" in ears.changed, what=lambda: ears.__dict__)
    assert ears.changed == ["a", "b"]


async def test_a_long_list_comes_in_pages(api: FakeApi, watches: PodWatches) -> None:
    api.page = 3
    for index in range(10):
        api.set(selected(f"p{index}"))
    pods = await watched(watches, api, Ears())

    assert len(pods.pods) == 11
    assert api.lists == 4


async def test_a_pod_longer_than_any_buffer_is_read(api: FakeApi, watches: PodWatches) -> None:
    ears = Ears()
    await watched(watches, api, ears)
    api.set({**selected("big"), "padding": "x" * 3_000_000})

    await until(lambda: "big" in ears.changed, what=lambda: ears.__dict__)


async def test_a_watch_that_ends_goes_on_where_it_was(api: FakeApi, watches: PodWatches) -> None:
    await watched(watches, api, Ears())
    bookmark = {"metadata": {"resourceVersion": "12345"}}
    api.send({"type": "BOOKMARK", "object": bookmark})
    api.send(None)

    await until(lambda: len(api.watches) == 2, what=lambda: api.watches)
    assert api.watches[1][1] == "12345"
    assert api.lists == 1


async def test_missed_changes_are_reported_after_a_new_list(
    api: FakeApi, watches: PodWatches
) -> None:
    ears = Ears()
    pods = await watched(watches, api, ears)
    api.set(selected("b"), quietly=True)
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


async def test_a_missing_permission_is_no_invalid_selector(
    api: FakeApi, watches: PodWatches
) -> None:
    api.refuse = (403, "pods is forbidden")
    ears = Ears()
    pods = watches.subscribe("shop", EVERYTHING, ears)

    await until(lambda: ears.told, what=lambda: pods)
    assert pods.refusal
    assert not pods.refusal.invalid


async def test_one_watch_serves_all_who_ask_for_the_same(api: FakeApi, watches: PodWatches) -> None:
    one, other = Ears(), Ears()
    pods = await watched(watches, api, one)
    assert watches.subscribe("shop", SELECTOR, other) is pods
    api.set(selected("b"))
    await until(lambda: other.changed == ["b"], what=lambda: other.__dict__)
    assert one.changed == ["a", "b"]
    assert len(api.watches) == 1

    watches.unsubscribe(pods, one)
    assert api.watching == 1
    watches.unsubscribe(pods, other)
    await until(lambda: not api.watching, what=lambda: api.watches)


async def test_one_watch_serves_any_number_of_sets(api: FakeApi, watches: PodWatches) -> None:
    api.set(pod_body("b", labels={"app": "b"}))
    api.set(pod_body("c", labels={"app": "a"}, namespace="other"))
    sets = [
        watches.subscribe("shop", app("a"), Ears()),
        watches.subscribe("shop", app("b"), Ears()),
        watches.subscribe("other", app("a"), Ears()),
    ]
    await until(lambda: api.watching, what=lambda: sets)
    late = watches.subscribe("shop", EVERYTHING, Ears())

    assert [list(pods.pods) for pods in sets] == [["uid-a"], ["uid-b"], ["uid-c"]]
    assert (late.listed, sorted(late.pods)) == (True, ["uid-a", "uid-b"])
    assert len(api.watches) == 1
    assert set(api.asked) == {""}


async def test_a_pod_whose_labels_change_leaves_one_set_and_enters_another(
    api: FakeApi, watches: PodWatches
) -> None:
    leaving, entering, indifferent = Ears(), Ears(), Ears()
    await watched(watches, api, leaving)
    watches.subscribe("shop", app("c"), entering)
    watches.subscribe("shop", EVERYTHING, indifferent)
    api.set(pod_body("a", labels={"app": "c"}))

    await until(lambda: entering.changed, what=lambda: leaving.__dict__)
    assert entering.changed == ["a"]
    assert leaving.removed == ["uid-a"]
    assert indifferent.told == 0


async def test_labels_that_changed_unseen_are_found_by_a_new_list(
    api: FakeApi, watches: PodWatches
) -> None:
    leaving = Ears()
    pods = await watched(watches, api, leaving)
    entered = watches.subscribe("shop", app("c"), Ears())
    api.set(pod_body("a", labels={"app": "c"}), quietly=True)
    api.expire()

    await until(lambda: entered.pods, what=lambda: api.watches)
    assert leaving.removed == ["uid-a"]
    assert not pods.pods


async def test_pods_of_other_namespaces_belong_to_no_set(api: FakeApi, watches: PodWatches) -> None:
    ears = Ears()
    pods = await watched(watches, api, ears)
    api.set(pod_body("next-door", labels={"app": "a"}, namespace="other"))
    api.set(selected("b"))

    await until(lambda: "b" in ears.changed, what=lambda: ears.__dict__)
    assert sorted(pods.pods) == ["uid-a", "uid-b"]


async def test_with_namespaces_each_has_its_own_watch(api: FakeApi, cluster: Cluster) -> None:
    watches = PodWatches(cluster, clusterwide=False)
    sets = [
        watches.subscribe(namespace, selector, Ears())
        for namespace in ("shop", "cart")
        for selector in (EVERYTHING, app("a"))
    ]
    await until(lambda: api.watching == 2, what=lambda: api.asked)

    assert all(pods.listed for pods in sets)
    assert sorted(set(api.asked)) == ["cart", "shop"]
    await watches.close()


async def test_a_namespace_without_permission_hinders_no_other(
    api: FakeApi, cluster: Cluster
) -> None:
    api.refuse_in["cart"] = (403, "pods is forbidden in cart")
    watches = PodWatches(cluster, clusterwide=False)
    allowed = watches.subscribe("shop", EVERYTHING, Ears())
    refused = watches.subscribe("cart", EVERYTHING, Ears())
    await until(lambda: refused.refusal and allowed.listed, what=lambda: refused)
    later = watches.subscribe("cart", app("a"), Ears())

    assert refused.refusal
    assert refused.refusal.message == "pods is forbidden in cart"
    assert later.refusal == refused.refusal
    assert allowed.refusal is None
    api.refuse_in.clear()
    await until(lambda: refused.listed and not refused.refusal, what=lambda: refused)
    await watches.close()


async def test_a_listener_that_fails_keeps_a_change_from_no_other(
    api: FakeApi, watches: PodWatches
) -> None:
    def fail(_: PodsChange) -> None:
        raise ZeroDivisionError

    watches.subscribe("shop", SELECTOR, fail)
    ears = Ears()
    await watched(watches, api, ears)
    api.set(selected("b"))

    await until(lambda: ears.changed == ["a", "b"], what=lambda: ears.__dict__)


async def test_a_pod_that_cannot_be_read_hinders_no_other(
    api: FakeApi, watches: PodWatches
) -> None:
    broken = pod_body("broken", labels={str(number): "" for number in range(1000)})
    api.set(broken)
    ears = Ears()
    pods = await watched(watches, api, ears)
    api.set(broken)
    api.set(
        {
            **selected("a"),
            "status": {"containerStatuses": [{"containerID": "1", "state": {"running": {}}}]},
        }
    )
    api.set(selected("b"))

    await until(lambda: "b" in ears.changed, what=lambda: ears.__dict__)
    assert list(pods.pods) == ["uid-b"]
    assert ears.removed == ["uid-a"]


async def test_pods_that_cannot_be_read_do_not_flood_the_log(
    api: FakeApi, watches: PodWatches, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {str(number): "" for number in range(1000)}
    for number in range(100):
        api.set(pod_body(f"broken-{number}", labels=labels))
    api.set(selected("a"))
    ears = Ears()
    await watched(watches, api, ears)
    await until(lambda: "a" in ears.changed, what=lambda: ears.__dict__)

    (record,) = (each for each in caplog.records if "broken-" in each.getMessage())
    assert "pod shop/broken-0 is left out" in record.getMessage()


async def test_a_watch_goes_on_for_a_while_after_its_last_set(
    api: FakeApi, cluster: Cluster
) -> None:
    watches = PodWatches(cluster)
    ears = Ears()
    pods = await watched(watches, api, ears)
    watches.unsubscribe(pods, ears)
    again = watches.subscribe("shop", EVERYTHING, ears)

    assert again.listed
    assert api.lists == 1
    await watches.close()


async def test_a_status_is_sent_as_a_merge_patch(api: FakeApi, cluster: Cluster) -> None:
    answer = await cluster.patch_status("shop", "checkout", {"status": {"phase": "Running"}})

    assert api.patches == [{"status": {"phase": "Running"}}]
    assert answer["status"] == {"phase": "Running"}


async def test_a_refused_write_says_why(api: FakeApi, cluster: Cluster) -> None:
    api.refuse = (422, "status.phase: Unsupported value")

    with pytest.raises(ApiError, match="Unsupported value") as caught:
        await cluster.patch_status("shop", "checkout", {"status": {}})
    assert caught.value.status == 422
