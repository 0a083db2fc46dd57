"""Processes and their tasks: what every program of the project needs of its surroundings."""
