"""From what a client names (a container, a cgroup, a process, a network namespace) to what the
kernel knows it by: cgroup ids, process ids and inode numbers of network namespaces."""
