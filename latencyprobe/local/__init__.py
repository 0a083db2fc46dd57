"""Measurements on this machine: a client of the protocol, with an agent of its own."""
