"""The API of a LatencyProbe: its spec and its status."""
