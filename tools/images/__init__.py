"""The container images: their contents, and a build without any image registry.

A Containerfile defines the image (user, entry point, environment, labels). Its build stage and
`make images` fill the layers by the same code (layers.py), so that both make the same files.
"""
