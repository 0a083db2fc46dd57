"""Python processes that we start as root: no other user decides which files they execute.

Python takes modules from the working directory, from PYTHONPATH and from the user's own packages.
A stranger, or an honest project with a `types.py`, may have put files there. Isolated mode (-I)
leaves all three out, and is not inherited: each start of an interpreter needs it again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from latencyprobe.process import temporary

# No module lies here, even if an option names a relative path.
DIRECTORY = "/"
_KEPT = frozenset({"HOME", "LANG", "LANGUAGE", "NO_COLOR", "PATH", "TZ"})
_KEPT_PREFIX = "LC_"


def python_module(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module of ours, for `DIRECTORY` and `environment`."""
    return (sys.executable, "-I", "-m", name, *arguments)


def environment(source: Mapping[str, str] = os.environ, **more: str) -> dict[str, str]:
    """Return the variables of our environment that such a process needs, with `more`.

    Settings of Python, of the dynamic linker, of bcc and of an agent of a cluster stay behind.
    """
    kept = {
        name: value
        for name, value in source.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIX)
    }
    # Absolute, also where $TMPDIR is not.
    return {**kept, "TMPDIR": temporary.directories()[0], **more}
