"""Tests of the operator and agents in a real Kubernetes (devcluster)."""
