"""Pod Security Standards: what a pod asks for beyond a level.

https://kubernetes.io/docs/concepts/security/pod-security-standards/, as of Kubernetes 1.36. The
cluster's tests ask the real admission; this tells for every values file, in no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.chart.helm import Manifest, container

_BASELINE_CAPABILITIES = frozenset(
    {
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"),
        *("NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    }
)
_RESTRICTED_VOLUMES = frozenset(
    {
        *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
        *("projected", "secret"),
    }
)


def beyond_baseline(template: Manifest) -> Sequence[str]:
    """What `baseline` forbids."""
    return sorted(_beyond_baseline(template))


def beyond_restricted(template: Manifest) -> Sequence[str]:
    """What `restricted` forbids, or misses."""
    return sorted({*_beyond_baseline(template), *_beyond_restricted(template)})


def _beyond_baseline(template: Manifest) -> Iterator[str]:
    spec, only = template["spec"], container(template)
    yield from (field for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field))
    for volume in spec.get("volumes", ()):
        if "hostPath" in volume:
            yield f"hostPath {volume['hostPath']['path']}"
    yield from ("hostPort" for port in only.get("ports", ()) if port.get("hostPort"))
    for context in (spec.get("securityContext", {}), only.get("securityContext", {})):
        yield from _beyond_baseline_in(context)


def _beyond_baseline_in(context: Manifest) -> Iterator[str]:
    for field in ("privileged", "procMount", "sysctls", "seLinuxOptions"):
        if context.get(field):
            yield field
    for capability in context.get("capabilities", {}).get("add", ()):
        if capability not in _BASELINE_CAPABILITIES:
            yield f"capability {capability}"
    for profile in ("appArmorProfile", "seccompProfile"):
        if context.get(profile, {}).get("type") == "Unconfined":
            yield f"{profile} Unconfined"


def _beyond_restricted(template: Manifest) -> Iterator[str]:
    spec, only = template["spec"], container(template)
    context = {**spec.get("securityContext", {}), **only.get("securityContext", {})}
    for volume in spec.get("volumes", ()):
        if not _RESTRICTED_VOLUMES & volume.keys():
            yield f"volume {volume['name']}"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        yield "root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccompProfile"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or capabilities.get("add"):
        yield "capabilities"
