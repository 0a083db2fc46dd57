"""The base of all errors of the cluster."""


class ClusterError(Exception):
    """An error whose message says enough without a traceback: the fault, and what to do."""
