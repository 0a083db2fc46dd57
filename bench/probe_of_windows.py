"""The interval and the window of the probe in `bench.agent_windows`."""

INTERVAL_S = 2
INTERVALS_OF_A_WINDOW = 6
