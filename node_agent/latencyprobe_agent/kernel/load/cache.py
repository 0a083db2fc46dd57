"""The cache of compiled objects: a folder that only its owner can enter.

What is loaded from it runs in the kernel. So the folder and each file must belong to this user, no
other user may have access to them, and no link is followed. A file also has a checksum, its key and
the version of its form. Any fault costs a compilation and a line in the log.

Two agents may share a folder: a file gets its name only when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KEPT_OBJECTS = 4

log = logging.getLogger(__name__)

_MAGIC = b"LPOBJECT"
_VERSION = 1
# Magic, version, SHA-256 of all that follows: length of the header, header in JSON, object.
_PREFIX = struct.Struct("<8sI32s")
_LENGTH = struct.Struct("<I")
_MOST_BYTES = 8 << 20
_SUFFIX = ".object"
_TEMPORARY_SUFFIX = ".tmp"
# Longer than any writing: the file of an agent that was killed.
_LEFT_BEHIND_S = 600
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK a FIFO would be waited for.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class UntrustedError(Exception):
    """A folder or file that is not used. The message is the reason."""


@dataclass(frozen=True, slots=True)
class CachedRequest:
    """The part of a `Request` that differs between those of one agent."""

    modules: tuple[str, ...]
    udp: bool
    trace: bool

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> CachedRequest:
        """Return the request of a table, as JSON has it."""
        return cls(tuple(table["modules"]), table["udp"], table["trace"])


@dataclass(frozen=True, slots=True)
class CachedObject:
    """An encoded object, and how it was attached at first: event to hook.

    `request`: the request that it was compiled for; None if it is not known.
    """

    content: bytes
    attached: Mapping[str, str]
    request: CachedRequest | None = None


class ObjectCache:
    """A folder of objects; it is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._path = folder

    @contextmanager
    def opened(self) -> Iterator[CacheFolder | None]:
        """Open the folder; None, and a line in the log, if it cannot be used."""
        try:
            folder = CacheFolder(self._path)
        except (OSError, UntrustedError) as error:
            log.warning(
                "cannot use the object cache %s: %s; programs are compiled at each start",
                self._path,
                _reason(error),
            )
            yield None
            return
        try:
            yield folder
        finally:
            folder.close()


class CacheFolder:
    """An open folder. Raises OSError, or UntrustedError if others can change it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with suppress(FileExistsError):
            os.mkdir(path, stat.S_IRWXU)
        self._descriptor = os.open(path, _OPEN_FOLDER)
        try:
            _check_owner(os.fstat(self._descriptor))
        except UntrustedError:
            self.close()
            raise

    def close(self) -> None:
        """Close the folder."""
        os.close(self._descriptor)

    def read(self, key: str) -> CachedObject | None:
        """Return the object with this key; None if there is none that can be used."""
        name = key + _SUFFIX
        try:
            return _unsealed(self._read(name), key)
        except FileNotFoundError:
            return None
        except (OSError, UntrustedError) as error:
            log.warning(
                "cannot use the cached object %s: %s; compiling it again",
                self._path / name,
                _reason(error),
            )
            return None

    def newest(self) -> Iterator[tuple[str, CachedObject]]:
        """Yield the keys and objects, those first that were used last."""
        objects = {name: age for name, age in self._ages().items() if name.endswith(_SUFFIX)}
        for name in sorted(objects, key=objects.__getitem__):
            key = name.removesuffix(_SUFFIX)
            if (cached := self.read(key)) is not None:
                yield key, cached

    def write(self, key: str, cached: CachedObject) -> None:
        """Keep an object, and no more than the newest; log an error if that fails."""
        name = key + _SUFFIX
        try:
            self._write(name, _sealed(cached, key))
            self._prune()
        except OSError as error:
            log.warning(
                "cannot cache the object %s: %s; the next start compiles it again",
                self._path / name,
                _reason(error),
            )

    def drop(self, key: str) -> None:
        """Remove an object, if it is there."""
        with suppress(OSError):
            os.unlink(key + _SUFFIX, dir_fd=self._descriptor)

    def _read(self, name: str) -> bytes:
        descriptor = os.open(name, _READ, dir_fd=self._descriptor)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UntrustedError("it is no regular file")
            _check_owner(status)
            if status.st_size > _MOST_BYTES:
                raise UntrustedError(f"it has more than {_MOST_BYTES} bytes")
            content = file.read(_MOST_BYTES)
            with suppress(OSError):  # such as a read-only file system
                os.utime(descriptor)  # the newest ones are those in use
        return content

    def _write(self, name: str, content: bytes) -> None:
        temporary = f"{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
        descriptor = os.open(
            temporary, _CREATE, stat.S_IRUSR | stat.S_IWUSR, dir_fd=self._descriptor
        )
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
            os.rename(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._descriptor)
            raise

    def _prune(self) -> None:
        """Remove all but the newest objects, and the temporary files of killed agents."""
        ages = self._ages()
        objects = sorted((name for name in ages if name.endswith(_SUFFIX)), key=ages.__getitem__)
        left_behind = (
            name
            for name, age in ages.items()
            if name.endswith(_TEMPORARY_SUFFIX) and age > _LEFT_BEHIND_S
        )
        for name in (*objects[KEPT_OBJECTS:], *left_behind):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._descriptor)

    def _ages(self) -> dict[str, float]:
        """Return the seconds since each file's last use."""
        return {name: age for name in os.listdir(self._descriptor) if (age := self._age(name))}

    def _age(self, name: str) -> float | None:
        """Return the seconds since a file's last use; None if it is gone."""
        try:
            status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return time.time() - status.st_mtime


def _check_owner(status: os.stat_result) -> None:
    """Raise UntrustedError if another user could have written it."""
    if status.st_uid != os.geteuid():
        raise UntrustedError(f"it belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & _OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        raise UntrustedError(f"others have access to it (mode {mode:04o}): chmod go= removes that")


def _sealed(cached: CachedObject, key: str) -> bytes:
    table: dict[str, object] = {"key": key, "attached": dict(cached.attached)}
    if cached.request is not None:
        table["request"] = asdict(cached.request)
    header = json.dumps(table).encode()
    rest = _LENGTH.pack(len(header)) + header + cached.content
    return _PREFIX.pack(_MAGIC, _VERSION, hashlib.sha256(rest).digest()) + rest


def _unsealed(whole: bytes, key: str) -> CachedObject:
    """Check a file's content. Raises UntrustedError."""
    if len(whole) < _PREFIX.size:
        raise UntrustedError("it is truncated")
    magic, version, checksum = _PREFIX.unpack_from(whole)
    if (magic, version) != (_MAGIC, _VERSION):
        raise UntrustedError("it has another form")
    rest = whole[_PREFIX.size :]
    if hashlib.sha256(rest).digest() != checksum:
        raise UntrustedError("its checksum is wrong")
    end = _LENGTH.size + _LENGTH.unpack_from(rest)[0]
    header = json.loads(rest[_LENGTH.size : end])
    if header["key"] != key:
        raise UntrustedError("it is for another kernel, or of another source")
    request = header.get("request")  # older agents wrote none
    return CachedObject(
        rest[end:], header["attached"], CachedRequest.of(request) if request else None
    )


def _reason(error: OSError | UntrustedError) -> str:
    if isinstance(error, UntrustedError):
        return str(error)
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    return f"{error.strerror} ({name})"
