"""Compiled objects of earlier runs, outside the repository.

Their keys are the agent's own: of the kernel, the toolchain, the sources and all that compiles
them. So a run after a change of any of these compiles anew.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from latencyprobe_agent.kernel.load.cache import CachedObject, ObjectCache
from latencyprobe_agent.kernel.load.key import object_key
from latencyprobe_agent.kernel.request import Request

# Those of three versions of the sources, and some.
_MOST = 200


class KeptObjects:
    """A folder with one folder an object, each as trustworthy as an agent's cache.

    Other runs may use it at the same time.
    """

    def __init__(self, folder: Path, most: int = _MOST) -> None:
        self._folder = folder
        self._most = most

    def read(self, request: Request) -> bytes | None:
        """The encoded object of this request, if it is there."""
        path = self._path(request)
        if not path.exists():
            return None
        with ObjectCache(path).opened() as opened:
            kept = opened.read(path.name) if opened is not None else None
        if kept is not None:
            with suppress(FileNotFoundError):  # another run has removed it
                os.utime(path)
        return kept.content if kept is not None else None

    def write(self, request: Request, content: bytes) -> None:
        """Keep an object, and forget those that were used longest ago."""
        path = self._path(request)
        self._folder.mkdir(parents=True, exist_ok=True)
        with ObjectCache(path).opened() as opened:
            if opened is not None:
                opened.write(path.name, CachedObject(content, {}))
        for old in sorted(self._folder.iterdir(), key=_used_last)[: -self._most]:
            shutil.rmtree(old, ignore_errors=True)

    def _path(self, request: Request) -> Path:
        # The agent's cache has no object with alternatives.
        return self._folder / (object_key(request) + ("-complete" if request.complete else ""))


def _used_last(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another run has removed it
        return 0
