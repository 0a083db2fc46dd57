"""Resolution of targets from a client's name of them to the kernel's identifiers.

A client names a container, a cgroup, a process or a network namespace. The kernel identifies them
by cgroup ids, process ids and inode numbers of network namespaces.
"""
