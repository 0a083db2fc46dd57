"""Pods become targets: their running containers, as far as the probe names them."""

from __future__ import annotations

from typing import Any

import pytest

from latencyprobe_operator.model import (
    MAX_LABELS,
    Container,
    newest_by_node,
    read_agent,
    read_pod,
    targets_of,
)
from tools.fakes.samples import container, pod, pod_body, target_id


def test_each_running_container_is_a_target() -> None:
    targets = targets_of(pod("a", containers=("server", "proxy")), ())

    assert [Container(target.name, target.container_id) for target in targets] == [
        container("a", "proxy"),
        container("a", "server"),
    ]


def test_only_the_named_containers_are_targets() -> None:
    targets = targets_of(pod("a", containers=("server", "proxy")), {"proxy", "other"})

    assert [target.name for target in targets] == ["proxy"]


def test_a_pod_has_the_earliest_start_of_its_running_containers() -> None:
    body = pod_body("a", containers=("server", "proxy"))
    first, second = body["status"]["containerStatuses"]
    first["state"]["running"]["startedAt"] = "2026-01-01T00:01:00Z"
    assert read_pod(body).started == 1767225601
    second["state"] = {"waiting": {}}
    assert read_pod(body).started == 1767225660
    for state, running in (("terminated", {}), ("running", {}), ("running", {"startedAt": "soon"})):
        first["state"] = {state: running}
        assert read_pod(body).started == 0


def test_a_restarted_container_is_another_target() -> None:
    (first,) = targets_of(pod("a", run=1), ())
    (second,) = targets_of(pod("a", run=2), ())

    assert first.id == target_id("a", run=1)
    assert second.id == target_id("a", run=2)
    assert first.pod_uid == second.pod_uid


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"phase": "Pending"},
        {"phase": "Pending", "containerStatuses": [{"name": "server", "state": {"waiting": {}}}]},
        {
            "phase": "Running",
            "containerStatuses": [
                {"name": "server", "containerID": "containerd://1", "state": {"terminated": {}}}
            ],
        },
        {
            "phase": "Failed",
            "containerStatuses": [
                {"name": "server", "containerID": "containerd://1", "state": {"running": {}}}
            ],
        },
    ],
    ids=["new", "pending", "waiting", "terminated", "failed"],
)
def test_a_pod_that_does_not_run_is_no_target(status: dict[str, Any]) -> None:
    body = {**pod_body("a"), "status": status}

    assert targets_of(read_pod(body), ()) == ()


def test_a_running_sidecar_is_a_target_and_another_init_container_is_not() -> None:
    body = pod_body("a")
    body["spec"]["initContainers"] = [
        {"name": "mesh", "restartPolicy": "Always"},
        {"name": "migrate"},
    ]
    body["status"]["initContainerStatuses"] = [
        {"name": name, "containerID": f"containerd://{name}", "state": {"running": {}}}
        for name in ("mesh", "migrate")
    ]

    names = [target.name for target in targets_of(read_pod(body), ())]

    assert names == ["mesh", "server"]


def test_the_agent_of_a_node_is_the_pod_that_stays() -> None:
    old, new = pod_body("old"), pod_body("new")
    old["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    other = pod_body("other", node="node-b")

    agents = newest_by_node(map(read_agent, (old, new, other)))

    assert {node: agent.name for node, agent in agents.items()} == {
        "node-a": "new",
        "node-b": "other",
    }


def test_labels_beyond_what_is_kept_of_a_pod_refuse_that_pod() -> None:
    labels = {f"label-{number}": "" for number in range(MAX_LABELS)}
    assert len(read_pod(pod_body("a", labels=labels)).labels) == MAX_LABELS

    with pytest.raises(ValueError, match="129 labels; at most 128 are kept"):
        read_pod(pod_body("a", labels={**labels, "one-more": ""}))


@pytest.mark.parametrize(
    ("name", "container_id"),
    [("a b", "containerd://1"), ("a", "containerd://1\nb containerd://2"), ("a", "1\u2028")],
)
def test_a_container_whose_name_or_id_hides_another_is_refused(
    name: str, container_id: str
) -> None:
    body = pod_body("a")
    running = {"name": name, "containerID": container_id, "state": {"running": {}}}
    body["status"]["containerStatuses"] = [running]

    with pytest.raises(ValueError, match="malformed name"):
        read_pod(body)


HASH = "8b1c3f9d5e7a4602b9f0c1d2e3f4a5b6"


def _mirror(**annotations: str) -> dict[str, Any]:
    """A static pod as the API server shows it: the mirror that its kubelet has made."""
    body = pod_body("kube-proxy-blue", node="blue", namespace="kube-system")
    body["metadata"] |= {
        "annotations": {
            "kubernetes.io/config.hash": HASH,
            "kubernetes.io/config.mirror": HASH,
            "kubernetes.io/config.seen": "2026-01-02T03:04:05.678901234Z",
            "kubernetes.io/config.source": "file",
            **annotations,
        },
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "controller": True,
                "kind": "Node",
                "name": "blue",
                "uid": "3c1b7f0e-9a2d-4c5b-8e6f-7a0b1c2d3e4f",
            }
        ],
    }
    return body


def test_a_static_pod_is_measured_by_its_kubelets_uid_and_reported_by_its_own() -> None:
    read = read_pod(_mirror())

    (target,) = targets_of(read, ())

    assert target.pod_uid == HASH
    assert read.uid == _mirror()["metadata"]["uid"]
    assert target.id.startswith(f"{read.uid}/")


@pytest.mark.parametrize("hash_", [HASH, "3c1b7f0e-9a2d-4c5b-8e6f-7a0b1c2d3e4f"])
def test_the_creator_of_a_pod_cannot_have_another_one_measured_by_it(hash_: str) -> None:
    body = _mirror(**{"kubernetes.io/config.hash": hash_})
    body["metadata"]["namespace"] = "shop"

    read = read_pod(body)

    assert read.cgroup_uid == body["metadata"]["uid"]
    assert read_pod(body, {"shop"}.__contains__).cgroup_uid == hash_


def test_a_pod_that_is_no_mirror_has_its_own_uid_with_any_annotations() -> None:
    body = _mirror()
    del body["metadata"]["annotations"]["kubernetes.io/config.mirror"]

    (target,) = targets_of(read_pod(body), ())

    assert target.pod_uid == body["metadata"]["uid"]


@pytest.mark.parametrize("hash_", ["", "../../etc", HASH.upper(), HASH + "0"])
def test_a_hash_that_no_kubelet_makes_is_not_used(hash_: str) -> None:
    body = _mirror(**{"kubernetes.io/config.hash": hash_})

    (target,) = targets_of(read_pod(body), ())

    assert target.pod_uid == body["metadata"]["uid"]
