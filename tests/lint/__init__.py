"""Checks of the files themselves: their style, types, layers and links."""
