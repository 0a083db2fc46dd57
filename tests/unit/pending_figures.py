"""Figures of what is pending, as an agent may send them."""

from __future__ import annotations

from hypothesis import strategies as st

from latencyprobe.domain.pending import LONGEST_PENDING_NS, PENDING_KINDS, Pending

_NUMBERS = st.integers(0, 2**53 - 1)
_AGES = st.integers(0, LONGEST_PENDING_NS)
pendings = st.builds(Pending, st.integers(1, 2**53 - 1), _NUMBERS, _NUMBERS, _AGES, _NUMBERS)
pending_by_kind = st.dictionaries(st.sampled_from([kind.name for kind in PENDING_KINDS]), pendings)
