"""What Helm makes of the chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.helm.chart import CHART, NAMESPACE, RELEASE, HelmProgram

VALUES_FILES = sorted((CHART / "ci").glob("*-values.yaml"))

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Helm(HelmProgram):
    """A Helm program whose renderings are read."""

    def manifests(
        self,
        *settings: str,
        values: Path | None = None,
        release: str = RELEASE,
        namespace: str = NAMESPACE,
    ) -> Manifests:
        """The same, read. `settings` are those of --set."""
        arguments = [f"--values={values}"] if values else []
        arguments += [f"--set={setting}" for setting in settings]
        text = self.render(*arguments, release=release, namespace=namespace)
        items = yaml.load_all(text, Loader=yaml.CSafeLoader)  # ten times as fast as the plain one
        return Manifests([item for item in items if item])

    def notes(self, values: Path) -> str:
        """What an install with this values file tells the user."""
        arguments = ("--dry-run=client", f"--namespace={NAMESPACE}", f"--values={values}")
        return self.run("install", RELEASE, str(CHART), *arguments).partition("\nNOTES:\n")[2]


class Manifests(list[Manifest]):
    """The objects of one rendering."""

    def of_kind(self, *kinds: str) -> list[Manifest]:
        """All of these kinds."""
        return [item for item in self if item["kind"] in kinds]

    def one(self, kind: str, name: str) -> Manifest:
        """The only one of this kind and name."""
        (found,) = (item for item in self.of_kind(kind) if item["metadata"]["name"] == name)
        return found

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """Name and pod template of all that makes pods."""
        for item in self.of_kind("Deployment", "DaemonSet", "Job"):
            yield item["metadata"]["name"], item["spec"]["template"]


def container(template: Manifest) -> Manifest:
    """The only container of a pod."""
    (only,) = template["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def options(template: Manifest) -> dict[str, str]:
    """The options that its container is started with, by name; a flag's value is empty."""
    arguments: Sequence[str] = container(template)["args"]
    parts = (argument.removeprefix("--").partition("=") for argument in arguments)
    return {name: value for name, _, value in parts}
