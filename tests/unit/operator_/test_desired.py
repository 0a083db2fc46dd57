"""Probes and pods become each node's desired state, and a change touches no other node."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.stages import Module
from latencyprobe.domain.summary import PodChoice
from latencyprobe_operator.api.spec import ProbeSpec
from latencyprobe_operator.desired_state import NO_STATE, DesiredStates
from latencyprobe_operator.model import Pod
from tools.fakes.samples import pod, probe_spec

CHECKOUT, CART = probe_spec("checkout"), probe_spec("cart", modules=["rx"])


def ids(states: DesiredStates, node: str) -> dict[str, list[str]]:
    """Target ids by probe, of one node."""
    return {
        probe.key.name: [target.pod_uid for target in probe.targets]
        for probe in states.of_node(node)
    }


def test_pods_are_grouped_by_node() -> None:
    states = DesiredStates()

    touched = states.set_probe(
        CHECKOUT, [pod("a"), pod("b", node="node-b"), pod("c"), pod("pending", node="")]
    )

    assert touched == {"node-a", "node-b"}
    assert ids(states, "node-a") == {"checkout": ["uid-a", "uid-c"]}
    assert ids(states, "node-b") == {"checkout": ["uid-b"]}
    assert states.of_node("node-c") == NO_STATE


def test_two_probes_on_a_pod_are_both_in_its_nodes_state() -> None:
    states = DesiredStates()
    states.set_probe(CHECKOUT, [pod("a")])

    touched = states.set_probe(CART, [pod("a")])

    assert touched == {"node-a"}
    assert ids(states, "node-a") == {"checkout": ["uid-a"], "cart": ["uid-a"]}


def test_a_pod_that_comes_restarts_or_goes_touches_its_node_alone() -> None:
    states = DesiredStates()
    states.set_probe(CHECKOUT, [pod("a"), pod("b", node="node-b")])
    uid = CHECKOUT.key.uid

    assert states.set_pod(uid, pod("c", node="node-b")) == {"node-b"}
    assert states.set_pod(uid, pod("c", node="node-b")) == set()
    assert states.set_pod(uid, pod("c", node="node-b", run=2)) == {"node-b"}
    assert states.remove_pod(uid, "uid-c") == {"node-b"}
    assert states.remove_pod(uid, "uid-c") == set()


def test_a_removed_probe_leaves_the_others() -> None:
    states = DesiredStates()
    states.set_probe(CHECKOUT, [pod("a")])
    states.set_probe(CART, [pod("a"), pod("b", node="node-b")])

    assert states.remove_probe(CART.key.uid) == {"node-a", "node-b"}
    assert ids(states, "node-a") == {"checkout": ["uid-a"]}
    assert states.of_node("node-b") == NO_STATE
    assert states.remove_probe(CART.key.uid) == set()


def test_a_new_spec_replaces_the_old_one() -> None:
    states = DesiredStates()
    pods = [pod("a", containers=("server", "proxy"))]
    states.set_probe(CHECKOUT, pods)

    states.set_probe(probe_spec(containers=["proxy"], filter={"ports": [443]}), pods)

    (probe,) = states.of_node("node-a")
    assert [target.name for target in probe.targets] == ["proxy"]
    assert probe.ports == (443,)


pods = st.builds(
    lambda name, node, run: pod(name, node=node, run=run),
    st.sampled_from("abcd"),
    st.sampled_from(["", "node-a", "node-b"]),
    st.integers(1, 3),
)
steps = st.lists(st.tuples(st.sampled_from([CHECKOUT, CART]), pods | st.sampled_from("abcd")))


@given(steps)
def test_following_changes_ends_where_starting_again_begins(
    steps: list[tuple[ProbeSpec, Pod | str]],
) -> None:
    states = DesiredStates()
    now: dict[str, dict[str, Pod]] = {CHECKOUT.key.uid: {}, CART.key.uid: {}}
    for spec in (CHECKOUT, CART):
        states.set_probe(spec, [])
    for spec, what in steps:
        before = {node: states.of_node(node) for node in ("node-a", "node-b")}
        uid = spec.key.uid
        if isinstance(what, Pod):
            now[uid][what.uid] = what
            touched = states.set_pod(uid, what)
        else:
            now[uid].pop(f"uid-{what}", None)
            touched = states.remove_pod(uid, f"uid-{what}")
        changed = {node for node, state in before.items() if states.of_node(node) != state}
        assert changed <= touched

    anew = DesiredStates()
    for spec in (CHECKOUT, CART):
        anew.set_probe(spec, now[spec.key.uid].values())
        for node in states.left_by(spec.key.uid):
            states.release(spec.key.uid, node)
    for node in ("node-a", "node-b"):
        assert states.of_node(node) == anew.of_node(node)


def test_agents_are_asked_for_figures_of_the_node_only_where_they_are_allowed() -> None:
    states = DesiredStates()
    everything = probe_spec("checkout", modules=["rx", "irq"])
    states.set_probe(everything, [pod("a")])
    (asked,) = states.of_node("node-a")
    assert (asked.modules, asked.node_figures) == ((Module.RX,), False)

    states.set_probe(replace(everything, node_figures=True), [pod("a")])
    (asked,) = states.of_node("node-a")
    assert (asked.modules, asked.node_figures) == ((Module.RX, Module.IRQ), True)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["", "n", "m", "o"]))))
def test_the_nodes_of_a_probe_are_counted(changes: list[tuple[str, str]]) -> None:
    states, uid = DesiredStates(), CHECKOUT.key.uid
    states.set_probe(CHECKOUT, [pod("first", node="n")])
    for name, node in changes:
        if node:
            states.set_pod(uid, pod(name, node=node))
        else:
            states.remove_pod(uid, f"uid-{name}")

        nodes = {placed.pod.node for placed in states.pods_of(uid).values()}
        assert states.nodes_of(uid) == len(nodes)
    states.remove_probe(uid)
    assert states.nodes_of(uid) == 0


def test_the_choice_of_pods_is_no_part_of_a_state() -> None:
    states = DesiredStates()
    choices = iter((PodChoice(1), PodChoice(2, 7)))
    states.set_probe(CHECKOUT, [pod("a")], lambda _: next(choices))
    first, second = (states.of_node("node-a") for _ in range(2))

    assert [first[0].pods_in_full, second[0].pods_in_full] == [PodChoice(1), PodChoice(2, 7)]
    assert first == second


def test_a_node_that_the_last_pod_has_left_is_asked_on_until_it_is_released() -> None:
    states, uid = DesiredStates(), CHECKOUT.key.uid
    states.set_probe(CHECKOUT, [pod("a"), pod("b", node="node-b")])

    assert states.remove_pod(uid, "uid-b") == {"node-b"}
    assert ids(states, "node-b") == {"checkout": []}
    assert states.left_by(uid) == {"node-b"}
    assert (states.probes_on("node-b"), states.nodes_of(uid)) == ([], 1)
    assert states.release(uid, "node-a") == set()
    assert states.release(uid, "node-b") == {"node-b"}
    assert states.release(uid, "node-b") == set()
    assert states.of_node("node-b") == NO_STATE


def test_a_pod_that_comes_back_ends_the_leaving() -> None:
    states, uid = DesiredStates(), CHECKOUT.key.uid
    states.set_probe(CHECKOUT, [pod("a")])
    states.remove_pod(uid, "uid-a")

    states.set_pod(uid, pod("c"))

    assert states.left_by(uid) == set()
    assert states.release(uid, "node-a") == set()
    assert ids(states, "node-a") == {"checkout": ["uid-c"]}


def test_a_new_spec_keeps_asking_the_nodes_that_were_left() -> None:
    states, uid = DesiredStates(), CHECKOUT.key.uid
    states.set_probe(CHECKOUT, [pod("a"), pod("b", node="node-b")], left=["node-a", "node-c"])
    states.remove_pod(uid, "uid-b")

    touched = states.set_probe(CHECKOUT, [pod("c", node="node-c")])

    assert touched == {"node-a", "node-b", "node-c"}
    assert states.left_by(uid) == {"node-b"}
    assert states.remove_probe(uid) == {"node-b", "node-c"}
    assert all(states.of_node(f"node-{each}") == NO_STATE for each in "abc")
