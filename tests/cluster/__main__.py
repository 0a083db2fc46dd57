"""`python -m tests.cluster up|down|status`: the cluster for people, which `make cluster` runs."""

import argparse
import sys

from .environment import Cluster
from .errors import ClusterError
from .layout import FOR_PEOPLE
from .programs import say_on_stderr

HOW_TO_USE = """\
The cluster is up. Use it with:

    export KUBECONFIG={kubeconfig}
    export PATH={kubectl}:$PATH
    kubectl get pods --all-namespaces

Its first node's network namespace, for a node agent beside it (listen at {node_ip}):

    {enter} COMMAND

Logs: {logs}
Stop it with: make cluster-down
"""


def up(cluster: Cluster, nodes: int) -> int:
    if not cluster.is_ready() or len(cluster.nodes) != nodes:
        cluster.start(nodes=nodes)
    text = HOW_TO_USE.format(
        kubeconfig=cluster.kubeconfig,
        kubectl=cluster.kubectl_path.parent,
        node_ip=cluster.node_ip,
        enter=" ".join(cluster.node_exec_prefix()),
        logs=cluster.logs_directory,
    )
    print(text, end="")
    return 0


def down(cluster: Cluster, _nodes: int) -> int:
    cluster.stop()
    print("The cluster is down.")
    return 0


def status(cluster: Cluster, _nodes: int) -> int:
    running = cluster.process_ids()
    for name, pid in running.items():
        print(f"{name:26} PID {pid}")
    ready = cluster.is_ready()
    print("The cluster is ready." if ready else "The cluster is not up.")
    return 0 if ready else 1


def main() -> int:
    commands = {"up": up, "down": down, "status": status}
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--nodes", type=int, default=1, help="1 or 2; for `up`")
    chosen = parser.parse_args()
    try:
        return commands[chosen.command](Cluster(FOR_PEOPLE), chosen.nodes)
    except ClusterError as error:
        say_on_stderr(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say_on_stderr("Interrupted. `python -m tests.cluster down` removes what was started.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
