"""How long to wait before the next attempt at something that is away."""

from __future__ import annotations

import tenacity

# tenacity's delays are functions of a retrying call's state; ours have no call, only attempts.
_NO_CALL = tenacity.AsyncRetrying()


class Backoff:
    """Delays that double up to a limit, each shortened at random by up to half.

    The jitter keeps a thousand connections that broke together from coming back together.
    """

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        half_first, half_longest = first_seconds / 2, longest_seconds / 2
        self._fixed = tenacity.wait_exponential(multiplier=half_first, max=half_longest)
        self._jitter = tenacity.wait_random(0, 1)
        self._state = tenacity.RetryCallState(_NO_CALL, None, (), {})

    def next(self) -> float:
        """The seconds to wait now."""
        half = self._fixed(self._state)
        self._state.attempt_number += 1
        return half * (1 + self._jitter(self._state))

    def reset(self) -> None:
        """Begin again with the first delay: the last attempt succeeded."""
        self._state.attempt_number = 1
