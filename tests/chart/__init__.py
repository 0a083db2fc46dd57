"""Tests of the Helm chart, by a real Helm and without a cluster."""
