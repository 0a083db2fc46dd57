"""The agent towards the network: gRPC, TLS and metrics."""
