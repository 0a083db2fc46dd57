"""The API of a LatencyProbe: the types of its spec and of its status."""
