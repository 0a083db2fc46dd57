"""Resources: the origin of metrics, as attributes by the semantic conventions.

Metrics of pods have the pod's own names in their resource, as those of the kubelet have in a
collector. `service.*` name the process that sends them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from latencyprobe import __version__

Attributes = Mapping[str, str]

SERVICE_NAME = "service.name"
INSTANCE = "service.instance.id"
HOST = "host.name"
NODE = "k8s.node.name"
NAMESPACE = "k8s.namespace.name"
POD = "k8s.pod.name"
CONTAINER = "k8s.container.name"
# Attributes of Kubernetes that a pod shares with the process that measures it.
_SHARED = frozenset({NODE, "k8s.node.uid", "k8s.cluster.name", "k8s.cluster.uid"})
# Labels of a measured pod, and their attributes. The label `node` is of the process's resource.
_OWNER = {"namespace": NAMESPACE, "pod": POD, "container": CONTAINER}
RESOURCE_LABELS = frozenset({*_OWNER, "node"})


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of metrics: a pod or container, or all pods of a namespace's probe."""

    namespace: str
    pod: str = ""
    container: str = ""

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> Owner | None:
        """Return the owner in the labels of a metric; None: the process itself."""
        if "namespace" not in labels:
            return None
        return cls(labels["namespace"], labels.get("pod", ""), labels.get("container", ""))


@dataclass(frozen=True, slots=True)
class ProcessResource:
    """The resource of this process. `attributes` are its own."""

    attributes: Attributes

    @classmethod
    def make(cls, service: str, attributes: Attributes) -> ProcessResource:
        """Return the resource of a service; these attributes come before its own.

        A pod's instance keeps its id when its container is started again.
        """
        names = [attributes.get(key, "") for key in (NAMESPACE, POD, CONTAINER)]
        instance = ".".join(names) if all(names) else str(uuid.uuid4())
        own = {SERVICE_NAME: service, "service.version": __version__, INSTANCE: instance}
        return cls({**own, **attributes})

    def of(self, owner: Owner | None) -> Attributes:
        """Return the attributes of an owner's metrics."""
        if owner is None:
            return self.attributes
        shared = {
            key: value
            for key, value in self.attributes.items()
            if key in _SHARED or not key.startswith("k8s.")
        }
        names = {key: getattr(owner, label) for label, key in _OWNER.items()}
        return {**shared, **{key: name for key, name in names.items() if name}}
