"""Tests that run inside a guest, where the kernel is another and nothing belongs to anybody."""
