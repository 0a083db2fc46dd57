"""The node agent: attaches eBPF programs for its targets, and streams what they measure."""
