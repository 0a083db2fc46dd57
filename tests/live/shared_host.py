"""A host for one test after another.

Making a namespace and the settings in it takes longer than clearing one.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.live.pods import Namespace, namespace
from tests.live.sockets import inside
from tests.live.targets import until
from tests.patience import patient


class SharedHost:
    """A network namespace that is lent to one test at a time, and cleared after each."""

    def __init__(self, shared: Namespace) -> None:
        self._shared = shared
        self._settings = settings(shared)
        self._is_lent = False

    @contextmanager
    def lend(self) -> Iterator[Namespace]:
        """As `pods.host_namespace`. A test that has the host already gets one of its own."""
        if self._is_lent:
            with namespace("host") as another:
                yield another
            return
        self._is_lent = True
        try:
            yield self._shared
        finally:
            self._clear()
            self._is_lent = False

    def _clear(self) -> None:
        """Remove what a test made in it, and restore the settings that it changed."""
        until(
            lambda: not remove_devices(self._shared),
            "the removal of devices of the shared host",
            seconds=patient(60),
        )
        _inside(self._shared, "nft", "flush", "ruleset")
        self._shared.ip("tcp_metrics", "flush")
        now = settings(self._shared)
        with inside(self._shared):
            for path, value in self._settings.items():
                if now.get(path, value) != value:
                    path.write_text(value)


def settings(host: Namespace) -> Mapping[Path, str]:
    """The sysctls of the namespace that can be read and set."""
    found = {}
    with inside(host):
        for folder, _, names in os.walk("/proc/sys/net"):
            for path in (Path(folder, name) for name in names):
                with suppress(OSError):
                    if path.stat().st_mode & stat.S_IWUSR:
                        found[path] = path.read_text()
    return found


def remove_devices(host: Namespace) -> list[str]:
    """Remove devices; returns those that were there. Those of pods may go at the same time."""
    links = json.loads(_said("ip", "-n", host.name, "-json", "-details", "link"))
    made = [link["ifname"] for link in links if "linkinfo" in link]
    for name in made:
        with suppress(RuntimeError):
            host.ip("link", "delete", name)
    return made


def _inside(host: Namespace, *command: str) -> str:
    return _said("ip", "netns", "exec", host.name, *command)


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
