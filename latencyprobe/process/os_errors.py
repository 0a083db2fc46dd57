"""Two kinds of errors of the operating system: the object is gone, or the call may succeed later.

Reading a cgroup during its removal fails with ENODEV, reading a process during its exit with ESRCH.
A lack of descriptors or memory, and an I/O error, say nothing about the object.
"""

from __future__ import annotations

import errno

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESRCH})
_TRANSIENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN})


def is_gone(error: OSError) -> bool:
    """Return True if the object of the call does not exist any more."""
    return error.errno in _GONE


def is_transient(error: OSError) -> bool:
    """Return True if the error says nothing of the object, and the call is worth a repetition."""
    return error.errno in _TRANSIENT
