"""Other kernels: Debian's, each booted in a virtual machine over this machine's own files.

The outer tests (this folder) fetch a kernel, boot it and look at what the tests inside said. The
inner tests are those of tests/live that are marked `every_kernel`, and the folder `inside/`: what
this machine's kernel cannot show (kprobes, netem, a NIC with interrupts, no BTF). A guest is
emulated and some ten times slower: it tells about behaviour, never about speed.
"""
