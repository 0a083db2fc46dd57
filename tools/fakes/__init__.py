"""Stand-ins for what the operator talks to: agents and an API server."""
