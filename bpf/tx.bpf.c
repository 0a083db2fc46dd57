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

/*
 * As `received`: direct-mapped by the skb's address, a cache line each, tagged. A packet may never
 * reach the last device: dropped, delivered to a process of the node, cut by software GSO. Its
 * element stays until the address comes again: then it counts as unmatched, and as lost if another
 * packet needs the element.
 */
struct sent {
	u64 tag;	   /* 0: free */
	u64 start_ns;	   /* TCP's stamp; equal to queue_ns where there is none (UDP) */
	u64 queue_ns;	   /* net_dev_queue where the socket lives */
	u64 last_queue_ns; /* net_dev_queue on the host's side; 0 before it */
	owners_t owners;
	u64 sk;
	u32 netns;
	u32 ifindex; /* of the device of queue_ns */
	u32 iif;     /* skb_iif at last_queue_ns */
	u32 mark;    /* datagram_mark(); 0 for TCP */
#if TRACE
	struct user user;
	struct endpoints endpoints;
#endif
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

static __always_inline bool is_sent(struct sent *packet, u64 identity)
{
	return packet->tag == sent_tag(identity, packet);
}

/* The packet of this element will not be seen to leave. */
static __always_inline void abandon(struct config *config, struct sent *packet)
{
	packet->tag = 0;
	unmatched_for(config, packet->owners, STAGE_TX_TOTAL, 1);
}

/*
 * What a datagram is told by when routing or br_netfilter has taken its socket away: its length and
 * the beginning of its payload, which address translation leaves alone. The address alone does not
 * do: an skb that a NIC or a bridge (for a copy) gets next may have it. TCP needs none of this, it
 * sends from a slab of its own, skbuff_fclone_cache.
 */
static __always_inline u32 datagram_mark(struct sk_buff *skb)
{
	struct {
		u16 length;
		u16 checksum;
		u32 payload;
	} from_length = {};

	bpf_probe_read_kernel(&from_length, sizeof(from_length),
			      READ(skb, head) + READ(skb, transport_header) + 4);
	if (bpf_ntohs(from_length.length) < 12)
		from_length.payload = 0;
	return (from_length.payload ^ (u32)from_length.length << 16) | 1;
}

/*
 * Whether an skb with the address of `packet` belongs to somebody else. Devices and bridges keep
 * skb->sk; it is NULL once the host routed the packet, ip_rcv_core(), net/ipv4/ip_input.c, or its
 * br_netfilter has seen it.
 */
static __always_inline bool is_foreign(struct sent *packet, struct sk_buff *skb, u32 inum)
{
	u64 sk = (u64)READ(skb, sk);

	return (sk && sk != packet->sk) || (inum != HOST_NETNS && inum != packet->netns);
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
	if (header[13] & (TCPHDR_SYN | TCPHDR_RST))
		return false;
	return length > before + (header[12] >> 4) * 4;
}

/* Who sends it where: known here, and not where it ends. */
static __always_inline void note_sender(struct sent *packet, struct socket_state *state,
					struct sk_buff *skb, u32 protocol)
{
#if TRACE
	struct sock *sk = READ(skb, sk);

	packet->user = state->user;
	packet->endpoints.family = 0;
	if (protocol == PROTOCOL_UDP)
		read_datagram_endpoints(skb, READ(skb, head) + READ(skb, network_header), true,
					&packet->endpoints);
	if (sk && !packet->endpoints.family)
		read_socket_endpoints(sk, protocol, &packet->endpoints);
#endif
}

static __always_inline void begin_packet(struct config *config, struct sk_buff *skb,
					 struct sent *packet, struct socket_state *state,
					 u32 protocol, u32 inum)
{
	struct net_device *dev = READ(skb, dev);
	u64 now = bpf_ktime_get_ns();
	u64 stamp = protocol == PROTOCOL_TCP ? READ(skb, tstamp) : now;

	/* The stamp is an earliest departure time: with pacing it may lie ahead. */
	if (stamp > now)
		miss_for(config, state->owners, STAGE_TX_STACK, CLAMPED, 1);
	if (stamp > now || !stamp)
		stamp = now;
	if (packet->tag)
		lost_for(config, packet->owners, STAGE_TX_TOTAL);
	packet->start_ns = stamp;
	packet->queue_ns = now;
	packet->last_queue_ns = 0;
	packet->owners = state->owners;
	packet->sk = (u64)READ(skb, sk);
	packet->netns = inum;
	packet->ifindex = READ(dev, ifindex);
	packet->mark = protocol == PROTOCOL_UDP ? datagram_mark(skb) : 0;
	note_sender(packet, state, skb, protocol);
	packet->tag = sent_tag(identity_of(skb, config), packet);
}

static __always_inline void queue_own(struct config *config, struct sk_buff *skb,
				      struct sent *packet, u32 inum)
{
	struct cpu_context *cpu = get_cpu_context();
	struct sock *sk = READ(skb, sk);
	struct socket_state *state;
	u32 protocol;

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
		begin_packet(config, skb, packet, state, protocol, inum);
}

/*
 * Whether it is `packet` that the host sends on: received there before, which sets skb_iif, or
 * wrapped by a tunnel of the host's, which clears it, iptunnel_xmit(), net/ipv4/ip_tunnel_core.c.
 */
static __always_inline bool is_forwarded(struct sent *packet, struct sk_buff *skb, u32 inum)
{
	u32 iif = READ(skb, skb_iif);

	if (inum != HOST_NETNS || packet->netns == HOST_NETNS || is_foreign(packet, skb, inum))
		return false;
	if (packet->last_queue_ns)
		return !iif || iif == packet->iif;
	return iif && (READ(skb, sk) || !packet->mark || packet->mark == datagram_mark(skb));
}

/* From a bridge or VLAN device to the device under it: the way begins at the last of them. */
static __always_inline bool is_passed_down(struct sent *packet, struct sk_buff *skb, u32 inum)
{
	struct net_device *dev = READ(skb, dev);

	return packet->netns == inum && packet->sk == (u64)READ(skb, sk) &&
	       packet->ifindex != READ(dev, ifindex);
}

/* __dev_queue_xmit(), net/core/dev.c; under rcu_read_lock_bh(): no softirq comes between */
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
	if (is_sent(packet, identity)) {
		if (is_forwarded(packet, skb, inum)) {
			packet->last_queue_ns = bpf_ktime_get_ns();
			packet->iif = READ(skb, skb_iif);
			packet->tag = sent_tag(identity, packet);
			return 0;
		}
		if (is_passed_down(packet, skb, inum))
			packet->tag = 0;
		else
			abandon(config, packet);
	}
	if (netns->flags & NETNS_WATCHED && !(inum == HOST_NETNS && READ(skb, skb_iif)))
		queue_own(config, skb, packet, inum);
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

static __always_inline void trace_sent(struct sent *packet)
{
#if TRACE
	struct trace_event *event = get_event(EVENT_SENT);

	if (!event || !is_to_be_told(event, packet->owners))
		return;
	event->user = packet->user;
	event->endpoints = packet->endpoints;
	submit_event(event);
#endif
}

static __always_inline void end_packet(struct config *config, struct sent *packet)
{
	struct trace_event *event = begin_event(EVENT_SENT);
	u64 now = bpf_ktime_get_ns();
	u64 last_queue_ns = packet->last_queue_ns ? packet->last_queue_ns : packet->queue_ns;
	owners_t owners = packet->owners;

	for (; owners; owners >>= OWNER_BITS) {
		struct slot_stats *slot = get_stats(config, first_slot(owners));

		if (!slot)
			continue;
		if (packet->start_ns != packet->queue_ns)
			record_part(slot, event, STAGE_TX_STACK, packet->queue_ns - packet->start_ns);
		if (packet->last_queue_ns)
			record_part(slot, event, STAGE_TX_HOST, last_queue_ns - packet->queue_ns);
		record_part(slot, event, STAGE_TX_QDISC, now - last_queue_ns);
		record_part(slot, event, STAGE_TX_TOTAL, now - packet->start_ns);
	}
	trace_sent(packet);
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
	if (!packet || !is_sent(packet, identity))
		return 0;
	if (is_foreign(packet, skb, netns_of(dev))) {
		abandon(config, packet);
		return 0;
	}
	if (!is_last_device(config, dev))
		return 0;
	packet->tag = 0;
	end_packet(config, packet);
	return 0;
}
