"""What all errors of the cluster have in common."""


class ClusterError(Exception):
    """The message says what is wrong and what to do, without a traceback."""
