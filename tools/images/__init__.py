"""The container images: what is in them, and how they are made without any image registry.

A Containerfile says what an image is (user, entry point, environment, labels). Its build stage and
`make images` fill the layers by the same code (layers.py), so that both make the same files.
"""
