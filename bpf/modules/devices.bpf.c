// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Module tx, its devices: which device is the last of a packet, and which drivers report its end.
 */

/* Devices that hand the same skb to another device of the same namespace. */
static __always_inline bool passes_on(u32 kind)
{
	switch (kind) {
	case KIND('b', 'r', 'i', 'd'): /* bridge */
	case KIND('v', 'l', 'a', 'n'):
	case KIND('b', 'o', 'n', 'd'):
	case KIND('t', 'e', 'a', 'm'):
	case KIND('m', 'a', 'c', 'v'): /* macvlan, macvtap */
	case KIND('i', 'p', 'v', 'l'): /* ipvlan */
	case KIND('i', 'p', 'v', 't'): /* ipvtap */
	case KIND('i', 'f', 'b', 0):   /* gives it back where it was redirected to it */
	case KIND('v', 'x', 'l', 'a'): /* vxlan */
	case KIND('g', 'e', 'n', 'e'): /* geneve */
	case KIND('i', 'p', 'i', 'p'):
	case KIND('g', 'r', 'e', 0):
	case KIND('g', 'r', 'e', 't'): /* gretap */
	case KIND('s', 'i', 't', 0):
	case KIND('i', 'p', '6', 't'): /* ip6tnl */
	case KIND('i', 'p', '6', 'g'): /* ip6gre, ip6gretap */
	case KIND('v', 't', 'i', 0):
	case KIND('v', 't', 'i', '6'):
	case KIND('x', 'f', 'r', 'm'):
	case KIND('v', 'r', 'f', 0):
		return true;
	}
	return false;
}

/* The fate of a packet that a device is given to transmit. */
#define DEVICE_PASSES_ON 0    /* seen again on another device */
#define DEVICE_IS_LAST 1      /* gone for good, no driver completes it: veth, loopback */
#define DEVICE_MAY_COMPLETE 2 /* its driver frees the packet once it is sent, perhaps visibly */
#define DEVICE_COMPLETES 3    /* its driver was seen to do that */
#define DEVICE_FATES 3ULL     /* mask */

static __always_inline u32 look_at_device(struct net_device *dev)
{
	u32 kind = kind_of(dev);

	if (passes_on(kind))
		return DEVICE_PASSES_ON;
	if (kind == KIND('v', 'e', 't', 'h'))
		return netns_of(dev) == HOST_NETNS || !leads_to_host(dev) ? DEVICE_IS_LAST :
									    DEVICE_PASSES_ON;
	if (kind == KIND('t', 'u', 'n', 0))
		return DEVICE_MAY_COMPLETE;
	return kind || READ(dev, flags) & IFF_LOOPBACK ? DEVICE_IS_LAST : DEVICE_MAY_COMPLETE;
}

#define DEVICE_BITS 8

/*
 * Results of look_at_device(), direct-mapped by the device's address. One u64 mixes address,
 * namespace, ifindex (an address is reused once its device is deleted) and generation; the lowest
 * bits are the fate. So the function is called again whenever the targets change.
 */
BPF_ARRAY(devices, u64, 1 << DEVICE_BITS);

/* The u64 of a device, and its place. */
static __always_inline u64 recall_device(struct config *config, struct net_device *dev, u32 inum,
					 u32 *index)
{
	u64 identity = identity_of(dev, config);
	u64 key = identity << 2 ^ (u64)inum << 32 ^ (u64)READ(dev, ifindex) << 20 ^
		  (u64)config->generation << 40;
	u64 *known, word;

	key &= ~DEVICE_FATES;
	*index = place_of(identity, DEVICE_BITS);
	known = devices.lookup(index);
	if (!known)
		return DEVICE_PASSES_ON;
	word = *known;
	if ((word & ~DEVICE_FATES) == key)
		return word;
	word = key | look_at_device(dev);
	*known = word;
	return word;
}
