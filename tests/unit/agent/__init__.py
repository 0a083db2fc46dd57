"""The agent without a kernel: targets, plan, collector, service."""
