"""What measuring costs: `python -m bench`.

Absolute times say little, on a shared machine they drift by factors. So every figure that can be is
a ratio of two things measured in turns in one run: the median over rounds, with the extremes.
"""
