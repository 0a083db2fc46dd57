/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tx: one packet from TCP's stamp to the last device.
 *
 *   skb_mstamp_ns --stack--> net_dev_queue in the pod --host--> net_dev_queue on the last device
 *     --qdisc--> net_dev_start_xmit on it
 *
 * Only packets with data count: a bare ACK, SYN, FIN or RST carries nothing of the application's.
 */

#define SENT_BITS 12

/* As `received`: direct-mapped by the skb's address, a cache line each, tagged. */
struct sent {
	u64 tag;
	u64 start_ns;	   /* TCP's stamp; equal to queue_ns where there is none (UDP) */
	u64 queue_ns;	   /* net_dev_queue where the socket lives */
	u64 last_queue_ns; /* net_dev_queue on the host's side; 0 before it */
	owners_t owners;
	u64 sk;
	u64 pad[2];
};
BPF_ARRAY(sent, struct sent, 1 << SENT_BITS);

static __always_inline struct sent *get_sent(u64 identity)
{
	u32 index = ((u32)(identity >> 6) * 0x9e3779b1U) >> (32 - SENT_BITS);

	return sent.lookup(&index);
}

static __always_inline u64 sent_tag(u64 identity, struct sent *packet)
{
	return identity ^ (packet->start_ns << 1) ^ (packet->queue_ns << 7) ^
	       (packet->last_queue_ns << 13);
}

/*
 * Whether a TCP segment holds data. At net_dev_queue skb->data is at the link-layer header, so the
 * payload is what lies behind the TCP header.
 */
static __always_inline bool has_tcp_data(struct sk_buff *skb)
{
	unsigned char *head = READ(skb, head);
	u32 offset = READ(skb, transport_header);
	u32 before = offset - (u32)(READ(skb, data) - head);
	u32 length = READ(skb, len);
	unsigned char header[14];

	if (length > before + 60) /* no TCP header is longer */
		return true;
	if (READ(skb, truesize) == 2) /* skb_set_tcp_pure_ack(), include/net/tcp.h */
		return false;
	if (bpf_probe_read_kernel(header, sizeof(header), head + offset))
		return false;
	if (header[13] & (TCP_FLAG_SYN | TCP_FLAG_RST))
		return false;
	return length > before + (header[12] >> 4) * 4;
}

static __always_inline void begin_packet(struct config *config, struct sk_buff *skb,
					 struct sent *packet, struct socket_state *state,
					 u32 protocol)
{
	u64 now = bpf_ktime_get_ns();
	u64 stamp = protocol == PROTOCOL_TCP ? READ(skb, tstamp) : now;

	/* The stamp is an earliest departure time: with pacing it may lie ahead. */
	if (stamp > now || !stamp)
		stamp = now;
	packet->start_ns = stamp;
	packet->queue_ns = now;
	packet->last_queue_ns = 0;
	packet->owners = state->owners;
	packet->sk = (u64)READ(skb, sk);
	packet->tag = sent_tag(identity_of(skb, config), packet);
}

static __always_inline void queue_own(struct config *config, struct sk_buff *skb,
				      struct sent *packet)
{
	struct cpu_context *cpu = get_cpu_context();
	struct sock *sk = READ(skb, sk);
	struct socket_state *state;
	u32 protocol;

	packet->tag = 0;
	if (!sk || !cpu || !is_full(sk))
		return;
	protocol = protocol_of(sk);
	if (!protocol)
		return;
	state = cpu->in_softirq ? get_state(sk, config) : get_own_state(sk, config);
	if (!state || !state->owners)
		return;
	if (protocol == PROTOCOL_TCP && !has_tcp_data(skb))
		return;
	if (is_sampled(config))
		begin_packet(config, skb, packet, state, protocol);
}

/* __dev_queue_xmit(), net/core/dev.c; under rcu_read_lock_bh(), so nothing interrupts it */
int on_net_dev_queue(u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	u32 inum = netns_of(READ(skb, dev));
	struct config *config = get_config();
	struct netns_entry *netns;
	struct sent *packet;
	u64 identity;

	if (!config)
		return 0;
	netns = find_netns(config, inum);
	if (!netns)
		return 0;
	identity = identity_of(skb, config);
	packet = get_sent(identity);
	if (!packet)
		return 0;
	/* forwarded: it was received before, and nothing has scrubbed that since */
	if (inum == HOST_NETNS && READ(skb, skb_iif)) {
		u64 sk = (u64)READ(skb, sk);

		if (packet->tag != sent_tag(identity, packet) || (sk && sk != packet->sk))
			return 0;
		packet->last_queue_ns = bpf_ktime_get_ns();
		packet->tag = sent_tag(identity, packet);
		return 0;
	}
	if (netns->flags & NETNS_WATCHED)
		queue_own(config, skb, packet);
	return 0;
}

/* The first four letters of rtnl_link_ops->kind, as the kernel's memory holds them. */
#define KIND(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)

static __always_inline u32 kind_of(struct net_device *dev)
{
	const struct rtnl_link_ops *operations = READ(dev, rtnl_link_ops);
	const char *name;
	u32 kind = 0;

	if (!operations)
		return 0; /* a hardware driver, or the loopback device */
	name = READ(operations, kind);
	bpf_probe_read_kernel(&kind, sizeof(kind), name);
	return kind;
}

/* Devices that hand the same skb to another device of the same namespace. */
static __always_inline bool passes_on(u32 kind)
{
	switch (kind) {
	case KIND('b', 'r', 'i', 'd'): /* bridge */
	case KIND('v', 'l', 'a', 'n'):
	case KIND('b', 'o', 'n', 'd'):
	case KIND('t', 'e', 'a', 'm'):
	case KIND('m', 'a', 'c', 'v'): /* macvlan, macvtap */
	case KIND('i', 'p', 'v', 'l'): /* ipvlan, ipvtap */
	case KIND('v', 'x', 'l', 'a'): /* vxlan */
	case KIND('g', 'e', 'n', 'e'): /* geneve */
	case KIND('i', 'p', 'i', 'p'):
	case KIND('g', 'r', 'e', 0):
	case KIND('g', 'r', 'e', 't'): /* gretap */
	case KIND('s', 'i', 't', 0):
	case KIND('i', 'p', '6', 't'): /* ip6tnl */
	case KIND('v', 'r', 'f', 0):
		return true;
	}
	return false;
}

/* Whether a veth's other end is in the host's namespace. netdev_priv(), include/linux/netdevice.h */
static __always_inline bool leads_to_host(struct net_device *dev)
{
#ifdef HAVE_net_device_priv
	u64 private = (u64)dev + offsetof(struct net_device, priv);
#else
	u64 private = (u64)dev + ((sizeof(struct net_device) + 31) & ~31UL);
#endif
	struct net_device *peer = 0; /* the first member of struct veth_priv, drivers/net/veth.c */
	struct net *net = 0;
	u32 inum = 0;

	bpf_probe_read_kernel(&peer, sizeof(peer), (void *)private);
	if (!peer)
		return false;
	bpf_probe_read_kernel(&net, sizeof(net), &peer->nd_net.net);
	bpf_probe_read_kernel(&inum, sizeof(inum), &net->ns.inum);
	return inum == HOST_NETNS;
}

static __always_inline bool look_at_device(struct net_device *dev)
{
	u32 kind = kind_of(dev);

	if (passes_on(kind))
		return false;
	return kind != KIND('v', 'e', 't', 'h') || netns_of(dev) == HOST_NETNS ||
	       !leads_to_host(dev);
}

#define DEVICE_BITS 8

/*
 * What look_at_device() said, direct-mapped by the device's address: one word of address, generation
 * and, as the lowest bit, the answer. So it is asked anew whenever the targets change.
 */
BPF_ARRAY(devices, u64, 1 << DEVICE_BITS);

static __always_inline bool is_last_device(struct config *config, struct net_device *dev)
{
	u64 identity = identity_of(dev, config);
	u64 key = identity << 1 ^ (u64)config->generation << 40;
	u32 index = ((u32)(identity >> 6) * 0x9e3779b1U) >> (32 - DEVICE_BITS);
	u64 *known = devices.lookup(&index);
	u64 answer;

	if (!known)
		return false;
	answer = *known;
	if ((answer & ~1ULL) == key)
		return answer & 1;
	answer = look_at_device(dev);
	*known = key | answer;
	return answer;
}

static __always_inline void end_packet(struct config *config, struct sent *packet)
{
	u64 now = bpf_ktime_get_ns();
	u64 last_queue_ns = packet->last_queue_ns ? packet->last_queue_ns : packet->queue_ns;
	owners_t owners = packet->owners;

	for (; owners; owners >>= OWNER_BITS) {
		struct slot_stats *slot = get_stats(config, first_slot(owners));

		if (!slot)
			continue;
		if (packet->start_ns != packet->queue_ns)
			record(&slot->stages[STAGE_TX_STACK], packet->queue_ns - packet->start_ns);
		if (packet->last_queue_ns)
			record(&slot->stages[STAGE_TX_HOST], last_queue_ns - packet->queue_ns);
		record(&slot->stages[STAGE_TX_QDISC], now - last_queue_ns);
		record(&slot->stages[STAGE_TX_TOTAL], now - packet->start_ns);
	}
}

/* xmit_one(), net/core/dev.c */
int on_net_dev_start_xmit(u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct net_device *dev = (struct net_device *)ctx[1];
	struct config *config = get_config();
	struct sent *packet;
	u64 identity;

	if (!config)
		return 0;
	identity = identity_of(skb, config);
	packet = get_sent(identity);
	if (!packet || packet->tag != sent_tag(identity, packet))
		return 0;
	if (!is_last_device(config, dev))
		return 0;
	packet->tag = 0;
	end_packet(config, packet);
	return 0;
}
