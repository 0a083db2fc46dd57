/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tx: one packet from the application's send() to the last device, and through its driver.
 *
 *   tcp_sendmsg_locked --socket--> skb_mstamp_ns --stack--> net_dev_queue in the pod
 *     --host--> net_dev_queue on the last device --qdisc--> net_dev_start_xmit on it
 *     --driver--> consume_skb
 *
 * Only packets with data count: a bare ACK, SYN, FIN or RST carries nothing of the application's. A
 * SYN is followed too, without being measured: if the host drops it, the connect waits.
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
	u64 start_ns;	   /* handed to TCP; its stamp, or queue_ns, where that is not known */
	u64 queue_ns;	   /* net_dev_queue where the socket lives */
	u64 last_queue_ns; /* net_dev_queue on the host's side; 0 before it */
	owners_t owners;
	u64 sk;
	u32 netns;
	u32 device;   /* ifindex of that of queue_ns; skb_iif at last_queue_ns once that is set */
	u32 mark;     /* datagram_mark() or segment_mark() */
	u32 stack_ns; /* from TCP's stamp to queue_ns; ABSENT where there is none (UDP) */
#if TRACE
	struct user user;
	struct endpoints endpoints;
#endif
};
BPF_ARRAY(sent, struct sent, 1 << SENT_BITS);

static __always_inline struct sent *get_sent(u64 identity)
{
	u32 index = place_of(identity, SENT_BITS);

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

/*
 * What stays the same of a packet on its path, with its kind in the lowest bits. MARK_UNMEASURED: it has
 * no stage, since it is a SYN, or since its first part is missing: so it has no total either.
 */
#define MARK_DATAGRAM 1U
#define MARK_UNMEASURED 2U
#define MARK_BITS 2

static __always_inline u32 segment_mark(u32 seq)
{
	return seq << MARK_BITS;
}

/* The owners for whom this packet is measured; 0: for none. */
static __always_inline owners_t measured_owners(struct sent *packet)
{
	return packet->mark & MARK_UNMEASURED ? 0 : packet->owners;
}

/* The packet of this element will not be seen to leave. */
static __always_inline void abandon(struct config *config, struct sent *packet)
{
	packet->tag = 0;
	unmatched_for(config, measured_owners(packet), STAGE_TX_TOTAL, 1);
}

/* Its address is used again, so it has left the node by no device that was seen. */
static __always_inline void abandon_unseen(struct config *config, struct sent *packet)
{
	if (measured_owners(packet))
		note_obstacle(config, OBSTACLE_UNSEEN_END);
	abandon(config, packet);
}

/* A packet that a device is given to transmit. `sk`: the sender's socket, as a number. */
struct departure {
	u64 identity;
	u64 sk;
	u64 tstamp;
	unsigned char *head;
	u32 data; /* distances from the head */
	u32 network;
	u32 transport;
	u32 length;
	u32 truesize;
	u32 netns;
	u32 ifindex;
	u32 came_by; /* skb_iif: the device of this namespace that received it; 0 for none */
	u16 protocol;
};

/* `read`: READ, or PEEK where the verifier does not know the type of the skb. */
#define DEPARTURE(read, config, skb, start, dev, inum)    \
	{                                                 \
		.identity = sent_identity(skb, config),   \
		.sk = (u64)read(skb, sk),                 \
		.tstamp = read(skb, tstamp),              \
		.head = start,                            \
		.data = (u32)(read(skb, data) - start),   \
		.network = read(skb, network_header),     \
		.transport = read(skb, transport_header), \
		.length = read(skb, len),                 \
		.truesize = read(skb, truesize),          \
		.netns = inum,                            \
		.ifindex = read(dev, ifindex),            \
		.came_by = read(skb, skb_iif),            \
		.protocol = read(skb, protocol),          \
	}

static __always_inline struct departure departure_of(struct config *config, struct sk_buff *skb,
						     u32 inum)
{
	struct net_device *dev = READ(skb, dev);
	unsigned char *head = READ(skb, head);
	struct departure departure = DEPARTURE(READ, config, skb, head, dev, inum);

	return departure;
}

/*
 * The identity of a datagram when routing or br_netfilter has removed its socket: its length and
 * the beginning of its payload, which address translation does not change. The address alone does
 * not suffice: an skb that a NIC or a bridge (for a copy) gets next may have it. TCP does not need
 * this, since it sends from a slab of its own, skbuff_fclone_cache.
 */
static __always_inline u32 mark_of_datagram(unsigned char *transport)
{
	struct {
		u16 length;
		u16 checksum;
		u32 payload;
	} from_length = {};

	bpf_probe_read_kernel(&from_length, sizeof(from_length), transport + 4);
	if (bpf_ntohs(from_length.length) < 12)
		from_length.payload = 0;
	return (from_length.payload ^ (u32)from_length.length << 16) << MARK_BITS | MARK_DATAGRAM;
}

static __always_inline u32 datagram_mark(struct departure *departure)
{
	return mark_of_datagram(departure->head + departure->transport);
}

/*
 * True if an skb with the address of `packet` is another packet. Devices and bridges keep skb->sk;
 * it is NULL once the host routed the packet, ip_rcv_core(), net/ipv4/ip_input.c, or its
 * br_netfilter has processed it.
 */
static __always_inline bool is_foreign(struct sent *packet, u64 sk, u32 inum)
{
	return (sk && sk != packet->sk) || (inum != HOST_NETNS && inum != packet->netns);
}

/* A segment of TCP as it is on the wire. */
struct tcp_segment {
	u32 seq;
	u32 length; /* of its data; 0 for a pure ACK, SYN, FIN or RST */
	bool is_syn;
};

/* At net_dev_queue skb->data is at the link-layer header: the data is what lies behind TCP's. */
static __always_inline struct tcp_segment parse_segment(struct departure *departure)
{
	struct tcp_segment segment = {};
	u32 before = departure->transport - departure->data;
	struct {
		u16 ports[2];
		u32 seq;
		u32 ack_seq;
		u8 header_words; /* in the upper half */
		u8 flags;
	} header;

	if (departure->truesize == 2) /* skb_set_tcp_pure_ack(), include/net/tcp.h */
		return segment;
	if (bpf_probe_read_kernel(&header, sizeof(header), departure->head + departure->transport))
		return segment;
	before += (header.header_words >> 4) * 4;
	segment.seq = bpf_ntohl(header.seq);
	segment.is_syn = header.flags & TCPHDR_SYN;
	if (header.flags & (TCPHDR_SYN | TCPHDR_RST) || departure->length <= before)
		return segment;
	segment.length = departure->length - before;
	return segment;
}

/* Sender and endpoints: known here, and not where the packet ends. */
static __always_inline void note_sender(struct sent *packet, struct socket_state *state,
					struct departure *departure, struct sock *sk, u32 protocol)
{
#if TRACE
	packet->user = state->user;
	packet->endpoints.family = 0;
	if (protocol == PROTOCOL_UDP)
		read_datagram_endpoints(departure->protocol, departure->head + departure->network,
					true, &packet->endpoints);
	if (sk && !packet->endpoints.family)
		read_socket_endpoints(sk, protocol, &packet->endpoints);
#endif
}

/*
 * The time before net_dev_queue: the stack's part, and the wait in the socket. False if the latter
 * is not known.
 */
static __always_inline bool begin_at_socket(struct config *config, struct departure *departure,
					    struct sock *sk, struct sent *packet,
					    struct socket_state *state, struct tcp_segment segment)
{
	u64 stamp = departure->tstamp, now = packet->queue_ns;
	/* from the map: the verifier has it as a pointer that may be NULL, else */
	u64 tp = *(volatile u64 *)&packet->sk;
	bool is_clamped = stamp > now;

	if (stamp && stamp < now)
		packet->stack_ns = saturate(now - stamp);
	else
		stamp = now;
	packet->start_ns = find_handoff(config, sk, (struct tcp_sock *)tp, state, segment.seq,
					segment.length, stamp);
	if (!packet->start_ns) {
		packet->start_ns = stamp;
		return false;
	}
	/* The stamp is an earliest departure time: with pacing it may lie ahead. */
	if (is_clamped)
		miss_for(config, state->owners, STAGE_TX_STACK, CLAMPED, 1);
	return true;
}

static __always_inline void begin_packet(struct config *config, struct departure *departure,
					 struct sent *packet, owners_t owners)
{
	u64 now = bpf_ktime_get_ns();

	if (packet->tag)
		lost_for(config, measured_owners(packet), STAGE_TX_TOTAL);
	packet->start_ns = now;
	packet->queue_ns = now;
	packet->last_queue_ns = 0;
	packet->owners = owners;
	packet->sk = departure->sk;
	packet->netns = departure->netns;
	packet->device = departure->ifindex;
	packet->stack_ns = ABSENT;
	packet->mark = 0;
}

static __always_inline void begin_segment(struct config *config, struct departure *departure,
					  struct sent *packet, struct sock *sk,
					  struct socket_state *state, struct tcp_segment segment)
{
	begin_packet(config, departure, packet, state->owners);
	packet->mark = segment_mark(segment.seq);
	if (!begin_at_socket(config, departure, sk, packet, state, segment))
		packet->mark |= MARK_UNMEASURED;
	note_sender(packet, state, departure, sk, PROTOCOL_TCP);
	packet->tag = sent_tag(departure->identity, packet);
}

/* A SYN, which is not measured. */
static __always_inline void begin_syn(struct config *config, struct departure *departure,
				      struct sent *packet, owners_t owners, u32 seq)
{
	begin_packet(config, departure, packet, owners);
	packet->mark = segment_mark(seq) | MARK_UNMEASURED;
	packet->tag = sent_tag(departure->identity, packet);
}

/* A target's packet without room for its socket's state. */
static __always_inline void lose_sent(struct config *config, owners_t owners, bool is_segment)
{
	if (is_segment)
		lost_for(config, owners, STAGE_TX_SOCKET);
	lost_for(config, owners, STAGE_TX_TOTAL);
}

static __always_inline void queue_own(struct config *config, struct sk_buff *skb,
				      struct sent *packet, u32 inum)
{
	struct cpu_context *cpu = get_cpu_context();
	struct sock *sk = READ(skb, sk);
	struct tcp_segment segment = {};
	struct departure departure;
	struct socket_state *state;
	struct turned_away away;
	u32 protocol;

	if (!sk || !cpu || !is_full(sk))
		return;
	protocol = protocol_of(sk);
	if (!protocol)
		return;
	state = get_used_state(sk, config, !is_serving_softirq(cpu), &away);
	if (!(state ? state->owners : away.owners) || !is_sampled(config))
		return;
	departure = departure_of(config, skb, inum);
	if (protocol == PROTOCOL_TCP) {
		segment = parse_segment(&departure);
		if (!segment.length) {
			if (segment.is_syn && state)
				begin_syn(config, &departure, packet, state->owners, segment.seq);
			return;
		}
	}
	if (!state) {
		lose_sent(config, away.owners, segment.length);
	} else if (segment.length) {
		begin_segment(config, &departure, packet, sk, state, segment);
	} else {
		begin_packet(config, &departure, packet, state->owners);
		packet->mark = datagram_mark(&departure);
		note_sender(packet, state, &departure, sk, PROTOCOL_UDP);
#ifdef WITH_QUERIES
		note_query(config, sk, state, departure.protocol,
			   departure.head + departure.network,
			   departure.head + departure.transport);
#endif
		packet->tag = sent_tag(departure.identity, packet);
	}
}

/*
 * True if the host forwards `packet`: received there before, which sets skb_iif; or sent by a device
 * of the pod to one of the host's under it (macvlan, ipvlan), which keeps the socket; or wrapped by
 * a tunnel of the host's, which clears skb_iif, iptunnel_xmit(), net/ipv4/ip_tunnel_core.c.
 */
static __always_inline bool is_forwarded(struct sent *packet, struct departure *departure)
{
	u32 iif = departure->came_by;

	if (departure->netns != HOST_NETNS || packet->netns == HOST_NETNS ||
	    is_foreign(packet, departure->sk, departure->netns))
		return false;
	if (packet->last_queue_ns)
		return !iif || iif == packet->device;
	if (departure->sk) /* the sender's: see is_foreign() */
		return true;
	return iif && (!(packet->mark & MARK_DATAGRAM) || packet->mark == datagram_mark(departure));
}

static __always_inline void queue_on_host(struct sent *packet, struct departure *departure, u64 now)
{
	packet->last_queue_ns = now;
	packet->device = departure->came_by;
	packet->tag = sent_tag(departure->identity, packet);
}

/* From a bridge or VLAN device to the device under it: the path begins at the last of them. */
static __always_inline bool is_passed_down(struct sent *packet, struct departure *departure)
{
	return packet->netns == departure->netns && packet->sk == departure->sk &&
	       !packet->last_queue_ns && packet->device != departure->ifindex;
}

static __always_inline void pass_down(struct sent *packet, struct departure *departure)
{
	u64 now = bpf_ktime_get_ns();

	if (packet->start_ns == packet->queue_ns)
		packet->start_ns = now;
	else if (packet->stack_ns != ABSENT)
		packet->stack_ns = saturate(packet->stack_ns + (now - packet->queue_ns));
	packet->queue_ns = now;
	packet->device = departure->ifindex;
	packet->tag = sent_tag(departure->identity, packet);
}

/* A packet that is known is given to another device; false: its skb is another packet by now. */
static __always_inline bool go_on(struct sent *packet, struct departure *departure)
{
	if (is_forwarded(packet, departure))
		queue_on_host(packet, departure, bpf_ktime_get_ns());
	else if (is_passed_down(packet, departure))
		pass_down(packet, departure);
	else
		return false;
	return true;
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

	if (!config || config->sees_departures)
		return 0;
	netns = find_netns(config, inum);
	if (!netns)
		return 0;
	identity = sent_identity(skb, config);
	packet = get_sent(identity);
	if (!packet)
		return 0;
	if (is_sent(packet, identity)) {
		struct departure departure = departure_of(config, skb, inum);

		if (go_on(packet, &departure))
			return 0;
		abandon_unseen(config, packet);
	}
	if (netns->flags & NETNS_WATCHED && !(inum == HOST_NETNS && READ(skb, skb_iif)))
		queue_own(config, skb, packet, inum);
	return 0;
}
