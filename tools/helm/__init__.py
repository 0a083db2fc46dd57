"""Helm and helm-docs, and their renderings of the chart."""
