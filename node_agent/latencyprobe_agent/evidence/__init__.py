"""Evidence: what the kernel counts of network namespaces, devices and softirqs, as deltas."""
