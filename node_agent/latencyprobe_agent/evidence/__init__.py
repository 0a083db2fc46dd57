"""Evidence: the kernel's counters of network namespaces, devices and softirqs, as deltas."""
