"""A real Kubernetes of one node or two, made of plain processes on this machine.

`python -m devcluster up|down|status` is for people, `environment.Cluster` for tests. The
README beside this file says what runs where.
"""
