"""What all errors of the images have in common."""


class ImageError(Exception):
    """The message says what could not be made and what to do, without a traceback."""
