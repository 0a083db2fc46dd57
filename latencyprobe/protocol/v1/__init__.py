"""The agent's protocol, version 1: code generated from proto/latencyprobe/v1."""
