"""The protocol between operator or local command and agent: the only shared use of protobuf."""
