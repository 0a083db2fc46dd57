"""cert-manager's programs, compiled once, and the chart and CRDs that come with their source."""

from pathlib import Path
from shutil import copytree

import yaml

from tools.go_programs import GoModule, one_at_a_time
from tools.progress import Say

_PATH = "github.com/cert-manager/cert-manager"
CERT_MANAGER = GoModule(
    name="cert-manager",
    directory=Path(__file__).parent / "cert-manager-binary",
    path=_PATH,
    package_prefix=f"{_PATH}/cmd/",
)
# Of a current release, whose programs no module of ours can require (cert-manager-binary/go.mod).
CURRENT = GoModule(
    name="cert-manager-crds", directory=Path(__file__).parent / "cert-manager-crds", path=_PATH
)


PROGRAMS = ("controller", "webhook", "cainjector")


def obtain(say: Say) -> dict[str, Path]:
    """Return the paths of cert-manager's programs. The first time this compiles them."""
    with one_at_a_time():
        paths = {name: CERT_MANAGER.cache / name for name in PROGRAMS}
        missing = [name for name, path in paths.items() if not path.exists()]
        if missing:
            say(
                f"Building cert-manager {CERT_MANAGER.version}: a minute or two on two cores, once."
            )
            version = f"-X {_PATH}/pkg/util.AppVersion={CERT_MANAGER.version}"
            CERT_MANAGER.build(missing, version, say)
        return paths


def write_chart(chart: Path) -> None:
    """Write cert-manager's own chart as its release tool makes it: with a version and the CRDs."""
    deploy = CERT_MANAGER.source() / "deploy"
    # The files of a module are read-only.
    copytree(deploy / "charts" / "cert-manager", chart, copy_function=_copy_content)
    described = yaml.safe_load((chart / "Chart.template.yaml").read_text())
    versions = {"version": CERT_MANAGER.version, "appVersion": CERT_MANAGER.version}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(described | versions))
    for crd in (deploy / "crds").glob("*.yaml"):
        _copy_content(crd, chart / "templates" / crd.name)


def _copy_content(source: Path | str, copy: Path | str) -> None:
    Path(copy).write_bytes(Path(source).read_bytes())


def current_crd(plural: str) -> str:
    """Return the CRD of a current release."""
    return (CURRENT.source() / "deploy" / "crds" / f"cert-manager.io_{plural}.yaml").read_text()
