/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What kind of device a network device is, and whether it leads to the host.
 */

#define TCX_NEXT (-1) /* of a program on a device: go on. include/uapi/linux/bpf.h */

/* The first four letters of rtnl_link_ops->kind, as the kernel's memory holds them. */
#define KIND(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)

/* The first eight letters, of any device: the verifier may not know its type. */
static __always_inline u64 name_of_kind(struct net_device *dev)
{
	struct rtnl_link_ops *operations = (struct rtnl_link_ops *)PEEK(dev, rtnl_link_ops);
	const char *name;
	u64 letters = 0;

	if (!operations)
		return 0; /* a hardware driver, or the loopback device */
	name = PEEK(operations, kind);
	bpf_probe_read_kernel(&letters, sizeof(letters), name);
	return letters;
}

/* Big-endian machines have the letters at the other end. */
static __always_inline u32 kind_of(struct net_device *dev)
{
	u64 letters = name_of_kind(dev);

	return *(u32 *)&letters;
}

/* veth, netkit: two devices, each of which receives what the other one sends. */
static __always_inline bool is_pair(u32 kind)
{
	return kind == KIND('v', 'e', 't', 'h') || kind == KIND('n', 'e', 't', 'k');
}

/* Devices that unwrap packets: what they receive came to the host in another packet. */
static __always_inline bool is_tunnel(u32 kind)
{
	switch (kind) {
	case KIND('v', 'x', 'l', 'a'): /* vxlan */
	case KIND('g', 'e', 'n', 'e'): /* geneve */
	case KIND('i', 'p', 'i', 'p'):
	case KIND('g', 'r', 'e', 0):
	case KIND('g', 'r', 'e', 't'): /* gretap */
	case KIND('e', 'r', 's', 'p'): /* erspan */
	case KIND('s', 'i', 't', 0):
	case KIND('i', 'p', '6', 't'): /* ip6tnl */
	case KIND('i', 'p', '6', 'g'): /* ip6gre, ip6gretap */
	case KIND('b', 'a', 'r', 'e'): /* bareudp */
	case KIND('v', 't', 'i', 0):
	case KIND('v', 't', 'i', '6'):
	case KIND('x', 'f', 'r', 'm'):
	case KIND('w', 'i', 'r', 'e'): /* wireguard */
		return true;
	}
	return false;
}

/* Whether a pair's other end is in the host's namespace. netdev_priv(), include/linux/netdevice.h */
static __always_inline bool leads_to_host(struct net_device *dev)
{
#ifdef HAVE_net_device_priv
	u64 private = (u64)dev + offsetof(struct net_device, priv);
#else
	u64 private = (u64)dev + ((sizeof(struct net_device) + 31) & ~31UL);
#endif
	/* the first member of struct veth_priv and struct netkit, drivers/net/ */
	struct net_device *peer = 0;
	struct net *net = 0;
	u32 inum = 0;

	bpf_probe_read_kernel(&peer, sizeof(peer), (void *)private);
	if (!peer)
		return false;
	bpf_probe_read_kernel(&net, sizeof(net), &peer->nd_net.net);
	bpf_probe_read_kernel(&inum, sizeof(inum), &net->ns.inum);
	return inum == HOST_NETNS;
}
