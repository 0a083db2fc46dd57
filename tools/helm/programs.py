"""Helm, and helm-docs that writes the chart's README: found, or else built.

A `helm` on the PATH is used if it has the pinned major version.
"""

import re
import shutil
import subprocess
from pathlib import Path

from tools.go_programs import GoModule, one_at_a_time
from tools.progress import Say

HELM = GoModule(
    name="helm",
    directory=Path(__file__).parent / "helm-binary",
    path="helm.sh/helm/v4",
    package_prefix="helm.sh/helm/v4/cmd/",
)
HELM_DOCS = GoModule(
    name="helm-docs",
    directory=Path(__file__).parent / "helm-docs-binary",
    path="github.com/norwoodj/helm-docs",
    package_prefix="github.com/norwoodj/helm-docs/cmd/",
)


def obtain_helm(say: Say) -> Path:
    """Return the path of Helm; compile it the first time, about two minutes on two cores."""
    with one_at_a_time():
        if found := _on_path():
            return found
        program = HELM.cache / "helm"
        if not program.exists():
            say(f"Building helm {HELM.version}: some three minutes on two cores, once.")
            version = f"-X helm.sh/helm/v4/internal/version.version={HELM.version}"
            HELM.build(["helm"], version, say)
        return program


def obtain_helm_docs(say: Say) -> Path:
    """Return the path of helm-docs; compile it the first time, about ten seconds.

    Its output differs between versions, so it is always the pinned one.
    """
    with one_at_a_time():
        program = HELM_DOCS.cache / "helm-docs"
        if not program.exists():
            say(f"Building helm-docs {HELM_DOCS.version}.")
            HELM_DOCS.build(["helm-docs"], f"-X main.version={HELM_DOCS.version}", say)
        return program


def _on_path() -> Path | None:
    program = shutil.which("helm")
    if program is None:
        return None
    answer = subprocess.run(
        [program, "version", "--short"], capture_output=True, text=True, check=False
    )
    major = HELM.version.partition(".")[0]
    return Path(program) if re.match(rf"{major}\.\d+", answer.stdout) else None
