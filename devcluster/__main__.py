"""`python -m devcluster up|load|down|status`: the cluster for people, of `make cluster`."""

import argparse
import sys
from pathlib import Path

from tools.debian import DebianError
from tools.go_programs import MissingProgramsError
from tools.helm.programs import obtain_helm
from tools.images import build
from tools.images.components import COMPONENTS, own_architecture
from tools.images.errors import ImageError
from tools.progress import say_on_stderr

from .environment import Cluster
from .errors import ClusterError
from .layout import FOR_PEOPLE

HOW_TO_USE = """\
The cluster is up. Use it with:

    export KUBECONFIG={kubeconfig}
    export PATH={kubectl}:$PATH
    kubectl get pods --all-namespaces

Its first node's network namespace, for a node agent beside it (listen at {node_ip}):

    {enter} COMMAND

Give it the images of this checkout, for the chart, with: make cluster-images
Logs: {logs}
Stop it with: make cluster-down
"""
HOW_TO_INSTALL = """\
{nodes} have the images {images}. Install the chart with:

    export PATH={helm}:$PATH
    helm install latencyprobe charts/latencyprobe --namespace latencyprobe-system --create-namespace
"""


def up(cluster: Cluster, nodes: int) -> int:
    """Start the cluster, unless it is ready, and print how to use it."""
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


def load(cluster: Cluster, _nodes: int) -> int:
    """Build the images of the checkout, give them to the nodes, and print how to install."""
    if not cluster.is_ready():
        say_on_stderr("error: there is no cluster to load images into: `make cluster` starts it")
        return 1
    built = build.build(list(COMPONENTS), own_architecture(), Path("dist"), say_on_stderr)
    for image in built:
        cluster.load_image(image.path)
    text = HOW_TO_INSTALL.format(
        nodes=" and ".join(node.name for node in cluster.nodes),
        images=" and ".join(image.path.name for image in built),
        helm=obtain_helm(say_on_stderr).parent,
    )
    print(text, end="")
    return 0


def down(cluster: Cluster, _nodes: int) -> int:
    """Stop the cluster."""
    cluster.stop()
    print("The cluster is down.")
    return 0


def status(cluster: Cluster, _nodes: int) -> int:
    """Print the running components; return 1 if the cluster is not ready."""
    running = cluster.process_ids()
    for name, pid in running.items():
        print(f"{name:26} PID {pid}")
    ready = cluster.is_ready()
    print("The cluster is ready." if ready else "The cluster is not up.")
    return 0 if ready else 1


def main() -> int:
    """Run a command; return its exit status."""
    commands = {"up": up, "load": load, "down": down, "status": status}
    parser = argparse.ArgumentParser(prog="python -m devcluster", description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--nodes", type=int, default=1, help="1 or 2; for `up`")
    chosen = parser.parse_args()
    try:
        return commands[chosen.command](Cluster(FOR_PEOPLE), chosen.nodes)
    except (ClusterError, DebianError, ImageError, MissingProgramsError) as error:
        say_on_stderr(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say_on_stderr("Interrupted. `python -m devcluster down` removes what was started.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
