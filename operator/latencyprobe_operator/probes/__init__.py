"""The life of each LatencyProbe: its pods, figures and status."""
