"""Text that attacks its reader, and the means to find what is left of it in an output."""

from __future__ import annotations

from google.protobuf.message import Message

# Clears the screen, sets the title, C1's CSI, DEL, NEL, ends of lines, bidirectional controls, a
# line separator, a byte order mark, NUL, and markup and emoji of rich.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b2J\x7f\x85\n\r\t\u202e\u2066\u2028\ufeff\0[red]:boom:[/nope]"
VISIBLE = r"\x1b[2J\x1b]0;owned\x07\x9b2J\x7f\x85\n\r\t\u202e\u2066\u2028\ufeff\x00[red]:boom:"
# 15 bytes, as the kernel keeps of a name. They are no UTF-8.
HOSTILE_COMM = b"\x1b[2J\xc2\x9b\xff\r[red]"
VISIBLE_COMM = "\\x1b[2J\\x9b\N{REPLACEMENT CHARACTER}\\r[red]"

# The client looks its own names up by these.
_LOOKED_UP = frozenset({"id", "instance_id", "StageDelta.name", "StageCoverage.name"})
_WITH_OPEN_NAMES = frozenset({"netns_counters", "NodeContext.counters"})


def unprintable(text: str) -> set[str]:
    """Return the characters that must not reach a reader; a line feed ends our own lines."""
    return {each for each in text if not each.isprintable()} - {"\n"}


def make_hostile(message: Message) -> None:
    """Append HOSTILE to all texts of a message of the protocol, except to the names of stages."""
    for field, value in message.ListFields():
        names = {field.name, f"{message.DESCRIPTOR.name}.{field.name}"}
        if names & _LOOKED_UP:
            continue
        if names & _WITH_OPEN_NAMES:
            value[HOSTILE] = 1
        elif field.message_type and field.message_type.GetOptions().map_entry:
            continue
        elif field.type == field.TYPE_STRING and isinstance(value, str):
            setattr(message, field.name, value + HOSTILE)
        elif field.message_type:
            for each in [value] if isinstance(value, Message) else value:
                make_hostile(each)
