r"""Standard streams that write any text.

A name of a file or process may have bytes that are no text, and a terminal's encoding may lack
characters that we use. Such a character is written as `\uXXXX`, which is valid in JSON, too.
"""

from __future__ import annotations

import codecs
import sys

ESCAPE = "latencyprobe.escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Escape the characters that cannot be encoded, those beyond U+FFFF as a surrogate pair."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = (units[at : at + 2] for at in range(0, len(units), 2))
    return "".join(f"\\u{pair.hex()}" for pair in pairs), error.end


codecs.register_error(ESCAPE, _escape)


def escape_what_cannot_be_encoded() -> None:
    """Make standard output and standard error escape what their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        # Tests and programs may have replaced them by streams of their own.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=ESCAPE)
