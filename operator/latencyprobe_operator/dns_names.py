"""Names of Kubernetes objects that follow DNS-1123.

The rules are those of k8s.io/apimachinery, pkg/util/validation/validation.go.
"""

from __future__ import annotations

import re

LONGEST_LABEL = 63
LONGEST_SUBDOMAIN = 253
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_A_LABEL = re.compile(_LABEL)
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")


def is_label(name: str) -> bool:
    """Decide whether this can be the name of a namespace."""
    return len(name) <= LONGEST_LABEL and _A_LABEL.fullmatch(name) is not None


def is_subdomain(name: str) -> bool:
    """Decide whether this can be the name of a pod, or the prefix of a label's key."""
    return len(name) <= LONGEST_SUBDOMAIN and _SUBDOMAIN.fullmatch(name) is not None
