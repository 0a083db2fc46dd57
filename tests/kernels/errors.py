"""What all errors of the virtual machines have in common."""


class KernelError(Exception):
    """The message says what is wrong and what to do, without a traceback."""
