"""Two kinds of errors of the operating system: the object is gone, or the call may succeed later.

Reading a cgroup during its removal fails with ENODEV, reading a process during its exit with ESRCH.
A lack of descriptors or memory, an I/O error and a signal say nothing about the object.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESRCH})
_TRANSIENT = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.EINTR}
)

_ADVICE: Mapping[int, str] = {
    errno.ENOSPC: "the disk is full: free space or inodes there",
    errno.EDQUOT: "the disk quota is used up: free space there",
    errno.EROFS: "the file system is read-only: mount a writable one there, or set TMPDIR",
    errno.EMFILE: "the limit of open files is too low: raise it (ulimit -n)",
    errno.ENFILE: "this machine has no more open files: raise fs.file-max",
    errno.ENOMEM: "there is no free memory: raise the memory limit",
    errno.EAGAIN: "there are too many processes or threads: raise their limit",
}


def explained(error: OSError) -> str:
    """Return the message of an error: the file, the reason, and the advice if there is any."""
    reason = error.strerror or str(error)
    name = errno.errorcode.get(error.errno or 0)
    if name is not None and os.strerror(error.errno or 0) == reason:
        reason = f"{reason} ({name})"
    if isinstance(error.filename, str):
        reason = f"{error.filename}: {reason}"
    advice = _ADVICE.get(error.errno or 0)
    is_complete = advice is None or advice in reason
    return reason if is_complete else f"{reason}; {advice}"


def is_gone(error: OSError) -> bool:
    """Return True if the object of the call does not exist any more."""
    return error.errno in _GONE


def is_transient(error: OSError) -> bool:
    """Return True if the error says nothing of the object, and the call is worth a repetition."""
    return error.errno in _TRANSIENT
