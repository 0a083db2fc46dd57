"""The agents of all nodes, over gRPC."""
