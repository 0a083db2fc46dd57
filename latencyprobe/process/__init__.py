"""Processes, tasks and their surroundings, for every program of the project."""
