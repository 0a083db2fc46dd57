"""Timestamps in the API's format."""

from __future__ import annotations

import datetime


def timestamp(seconds: float) -> str:
    """Format seconds since the epoch for the API."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch_s(text: str) -> float:
    """Parse a timestamp of the API into seconds since the epoch; raises ValueError."""
    return datetime.datetime.fromisoformat(text).timestamp()
