"""Stand-ins for the peers of the operator: agents and an API server."""
