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
	case KIND('e', 'r', 's', 'p'): /* erspan */
	case KIND('b', 'a', 'r', 'e'): /* bareudp */
	case KIND('w', 'i', 'r', 'e'): /* wireguard: what it encrypts goes on in another skb */
	case KIND('m', 'a', 'c', 's'): /* macsec */
	case KIND('o', 'p', 'e', 'n'): /* openvswitch: to one of the switch's ports */
	case KIND('d', 's', 'a', 0):
	case KIND('h', 's', 'r', 0):
		return true;
	}
	return false;
}

/* Devices without another one behind them, whatever their packets are carried by. */
static __always_inline bool is_end(u32 kind)
{
	return kind == KIND('d', 'u', 'm', 'm') || kind == KIND('i', 'p', 'o', 'i');
}

/* The fate of a packet that a device is given to transmit. */
#define DEVICE_PASSES_ON 0    /* seen again on another device */
#define DEVICE_IS_LAST 1      /* gone for good, no driver completes it: veth, loopback */
#define DEVICE_MAY_COMPLETE 2 /* its driver frees the packet once it is sent, perhaps visibly */
#define DEVICE_COMPLETES 3    /* its driver was seen to do that */
#define DEVICE_FATES 3ULL     /* mask */

static __always_inline u32 fate_of_pair(struct config *config, struct net_device *dev)
{
	if (netns_of(dev) == HOST_NETNS)
		return DEVICE_IS_LAST;
	if (leads_to_host(dev))
		return DEVICE_PASSES_ON;
	note_obstacle(config, OBSTACLE_OTHER_NETNS);
	return DEVICE_IS_LAST;
}

/*
 * Of a kind that is not known, a packet may go on by another device. It is unmatched if it is not
 * seen again.
 */
static __always_inline u32 fate_of_device(struct config *config, struct net_device *dev)
{
	u32 kind = kind_of(dev), inum = netns_of(dev);

	if (is_pair(kind))
		return fate_of_pair(config, dev);
	if (passes_on(kind))
		return DEVICE_PASSES_ON;
	if (kind == KIND('t', 'u', 'n', 0)) {
		if (inum != HOST_NETNS)
			note_obstacle(config, OBSTACLE_TUN);
		return DEVICE_MAY_COMPLETE;
	}
	if (!kind)
		return READ(dev, flags) & IFF_LOOPBACK ? DEVICE_IS_LAST : DEVICE_MAY_COMPLETE;
	if (is_end(kind))
		return DEVICE_IS_LAST;
	if (inum == HOST_NETNS)
		config->unknown_kind = name_of_kind(dev);
	note_obstacle_in(config, inum, OBSTACLE_UNKNOWN_DEVICE, name_of_kind(dev));
	return DEVICE_PASSES_ON;
}

#define DEVICE_BITS 12

/*
 * Results of fate_of_device(), direct-mapped by the device's address. One u64 mixes address,
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
	word = key | fate_of_device(config, dev);
	*known = word;
	return word;
}
