"""Tests in tiers, by what they need: see CONTRIBUTING.md."""
