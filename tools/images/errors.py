"""The base of all errors of the images."""


class ImageError(Exception):
    """An error for people, without a traceback: the failure, and what to do."""
