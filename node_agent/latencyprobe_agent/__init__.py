"""The node agent: attaches eBPF programs for the targets it is told of, and streams what they measure."""
