"""The maps of a loaded object by name, and the entries of those that are hashes or arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import EngineError


class MapEntries(Protocol):
    """The entries of an object's maps that programs make, for the agent to read and delete."""

    def look_up(self, name: str, key: bytes, value_bytes: int) -> bytes | None:
        """Return the value of one entry; None if it does not exist. Raises EngineError."""

    def erase(self, name: str, keys: Iterable[bytes]) -> Collection[bytes]:
        """Delete entries of a map; return the keys of those that existed. Raises EngineError."""

    def keys(self, name: str, key_bytes: int) -> set[bytes]:
        """Return the present keys of a map. Raises EngineError."""


class NamedMaps:
    """The maps of one object, by their descriptors. A refusal of the kernel has the map's name."""

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        self.descriptors = dict(descriptors)

    def write(self, name: str, entries: Mapping[bytes, bytes]) -> None:
        """Set entries of a map. Raises EngineError for a full map, with its name."""
        for key, value in entries.items():
            with _with_name(f"{name} with {len(entries)} new entries"):
                libbpf.update(self.descriptors[name], key, value)

    def look_up(self, name: str, key: bytes, value_bytes: int) -> bytes | None:
        """Return the value of one entry; None if it does not exist. Raises EngineError."""
        with _with_name(name):
            return libbpf.look_up(self.descriptors[name], key, value_bytes)

    def erase(self, name: str, keys: Iterable[bytes]) -> Collection[bytes]:
        """Delete entries of a map; return the keys of those that existed. Raises EngineError."""
        with _with_name(name):
            return [key for key in keys if libbpf.delete(self.descriptors[name], key)]

    def keys(self, name: str, key_bytes: int) -> set[bytes]:
        """Return the present keys of a map. Raises EngineError."""
        with _with_name(name):
            return set(libbpf.keys(self.descriptors[name], key_bytes))


@contextmanager
def _with_name(of_map: str) -> Iterator[None]:
    """Give a refusal of the kernel the map's name: raise EngineError for it."""
    try:
        yield
    except libbpf.KernelRefusedError as error:
        raise EngineError(f"map {of_map}: {error}") from error
