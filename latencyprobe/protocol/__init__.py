"""The protocol between operator or local command and agent: all that is shared of protobuf."""
