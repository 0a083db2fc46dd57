"""latencyprobe: where the time of a pod's packets goes.

This package holds what every side shares: the pure domain (stages, histograms, windows, verdicts,
reports) and the command line. The node agent and the operator import it; it imports neither.
"""

__version__ = "0.1.0"
