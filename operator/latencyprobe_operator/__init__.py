"""The operator: keeps the agents measuring what each LatencyProbe asks for, and reports it."""
