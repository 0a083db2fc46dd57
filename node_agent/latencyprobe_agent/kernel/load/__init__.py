"""From object to programs and maps in the kernel: hook by hook, in the order of preference."""
