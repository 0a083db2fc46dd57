"""The cost of measuring: `python -m bench`.

Absolute times mean little, since on a shared machine they drift by factors. So most figures are
ratios of two measurements in turns in one run: the median over rounds, with its quartiles.
"""
