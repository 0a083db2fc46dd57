"""A real Kubernetes of one node, made of plain processes on this machine, for tests and people.

`python -m tests.cluster up|down|status` is for people, `environment.Cluster` for tests. The
README beside this file says what runs where.
"""
