"""Evidence: the kernel's counters of namespaces, cgroups, devices, softirqs and CPUs, as deltas."""
