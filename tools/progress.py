"""Progress reports of builds and downloads, which take minutes."""

import sys
from collections.abc import Callable

Say = Callable[[str], None]


def say_on_stderr(message: str) -> None:
    """Print a message for a person, at once."""
    print(message, file=sys.stderr, flush=True)
