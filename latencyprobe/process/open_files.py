"""The limit of open files of this process."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)


def raise_open_files_limit() -> None:
    """Raise the soft limit to the hard one.

    The soft one is often 1,024, for programs that use select(2). Agent and operator do not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        # fs.nr_open may have been lowered to less than the hard limit
        log.debug("cannot raise the limit of open files from %d to %d: %s", soft, hard, error)
    else:
        log.debug("raised the limit of open files from %d to %d", soft, hard)
