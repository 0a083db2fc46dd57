"""Helm and helm-docs, and what they make of the chart."""
