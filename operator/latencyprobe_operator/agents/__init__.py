"""The agents of all nodes, over gRPC. No other package of the operator knows protobuf."""
