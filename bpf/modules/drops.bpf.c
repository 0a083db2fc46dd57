/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tcp: packets of the targets that are dropped, with reason and kernel function. These are
 * those that have a target's socket, and with the module tx those that the host has on their path out:
 * routing takes their socket away, ip_rcv_core(), net/ipv4/ip_input.c.
 */

/* A place in the kernel's code that drops packets of a slot, in one half of `stats`. */
struct drop_place {
	u64 location; /* behind the call of kfree_skb(): it stays on the node */
	u32 slot;
	u32 epoch;
};

/*
 * How often, by place. The agent takes and deletes the elements of the half that is not written. Where
 * the slot has no room, drops have a reason alone. Allocated ahead, since kfree_skb() may be called from
 * anywhere.
 */
BPF_TABLE("hash", struct drop_place, u64, drop_places, MAX_DROP_PLACES);

#ifdef WITH_ON_DROP_PLACE

/*
 * bpf_iter__bpf_map_elem, kernel/bpf/map_iter.c, 5.8+: write the name of each place's function, by
 * which it is known without reading /proc/kallsyms (CAP_SYSLOG). The kernel writes a module behind it.
 */
int on_drop_place(u64 *ctx)
{
	struct drop_place *place = (struct drop_place *)ctx[2];
	struct seq_file *file = *(struct seq_file **)ctx[0]; /* struct bpf_iter_meta */
	const char format[] = "%llx %ps\n";
	u64 values[2];

	if (!place)
		return 0;
	values[0] = values[1] = place->location;
	bpf_seq_printf(file, format, sizeof(format), values, sizeof(values));
	return 0;
}

#endif

#ifdef HAVE_kfree_skb_reason

/* Because the socket's own queue or the protocol's memory is full. */
static __always_inline bool is_queue_overflow(u32 reason)
{
	return reason == DROP_SOCKET_RCVBUFF || reason == DROP_SOCKET_BACKLOG ||
	       reason == DROP_PROTO_MEM || reason == DROP_TCP_OFO_QUEUE_PRUNE ||
	       reason == DROP_TCP_OFO_DROP;
}

static __always_inline void count_place(struct config *config, u32 slot, u64 location)
{
	struct drop_place place = {
		.location = location,
		.slot = slot,
		.epoch = config->epoch & 1,
	};
	u64 *count = drop_places.lookup(&place), none = 0;

	if (!count) {
		if (!take_room(ROOM_DROP_PLACES, slot))
			return;
		drop_places.insert(&place, &none); /* unless another CPU has done so */
		count = drop_places.lookup(&place);
	}
	if (count)
		__sync_fetch_and_add(count, 1);
	end_branch();
}

/* `is_ack`: 1 of an ACK without data; else 0. */
static __always_inline void drop_for(struct config *config, owners_t owners, u32 reason,
				     u64 location, u64 is_ack)
{
	u64 index = reason < NR_DROP_REASONS ? reason : NR_DROP_REASONS - 1;
	int i;

#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, owners >>= OWNER_BITS) {
		struct slot_stats *slot = stats_of_first(config, owners);

		asm volatile("" : "+r"(index)); /* as in record() */
		if (slot && index < NR_DROP_REASONS) {
			__sync_fetch_and_add(&slot->drops[index], 1);
			__sync_fetch_and_add(&slot->counters[COUNTER_DROPPED_ACKS], is_ack);
			count_place(config, first_slot(owners), location);
		}
	}
}

/*
 * A closed socket frees the packets in its queues: no drop. A packet without a reason is none
 * either.
 */
static __always_inline bool is_drop(u32 reason)
{
	return reason > DROP_NOT_SPECIFIED && reason != DROP_QUEUE_PURGE &&
	       reason != DROP_SOCKET_CLOSE;
}

/* What is dropped, if it is a segment that a socket has sent. */
struct dropped {
	u64 is_segment;
	u64 sender;    /* the identity of its socket, see identity_of() */
	u64 transport; /* offset of TCP's header */
};

/* Of a packet that has a socket. What that receives is sent by its peer, as the ports say. */
static __always_inline void find_sender(struct config *config, struct dropped *dropped,
					struct sock *sk, struct sk_buff *skb)
{
	u64 outer = READ(skb, transport_header), inner = READ(skb, inner_transport_header);
	u64 is_outer, is_tcp = is_equal(protocol_of(sk), PROTOCOL_TCP);
	u16 port = 0, inner_port = 0, own = bpf_htons(READ(sk, __sk_common.skc_num));

	bpf_probe_read_kernel(&port, sizeof(port), READ(skb, head) + outer);
	bpf_probe_read_kernel(&inner_port, sizeof(inner_port), READ(skb, head) + inner);
	is_outer = is_equal(port, own);
	dropped->is_segment = is_tcp & (is_outer | is_equal(inner_port, own));
	dropped->sender = identity_of(sk, config);
	dropped->transport = choose(is_outer, outer, inner);
}

/* Return 1 for an ACK without data. No process waits for a bare FIN. */
static __always_inline u64 note_dropped_segment(struct config *config, owners_t owners,
						struct dropped *dropped, struct sk_buff *skb)
{
	unsigned char *head = READ(skb, head);
	s64 end = READ(skb, data) - head + READ(skb, len);
	struct tcphdr header = {};

	if (!dropped->is_segment)
		return 0;
	bpf_probe_read_kernel(&header, sizeof(header), head + dropped->transport);
	if (header.syn || end - (s64)dropped->transport > header.doff * 4) {
		note_dropped(config, owners, dropped->sender, bpf_ntohl(header.seq));
		return 0;
	}
	return !header.fin & !header.rst;
}

#ifdef MODULE_TX

/* Without a branch: see choose(). */
static __always_inline u64 is_marked(struct sent *packet, unsigned char *transport)
{
	u64 mark = packet->mark, is_datagram = is_equal(mark & MARK_DATAGRAM, MARK_DATAGRAM);
	u32 seq = 0;

	bpf_probe_read_kernel(&seq, sizeof(seq), transport + 4);
	return (is_datagram & is_equal(mark, mark_of_datagram(transport))) |
	       ((is_datagram ^ 1) &
		is_equal(mark & ~(u64)MARK_UNMEASURED, segment_mark(bpf_ntohl(seq))));
}

/*
 * The owners of a packet that a target sent and that has no socket any more. Another packet may have
 * the skb by now: so it has to have the same content. A tunnel's header may be before it.
 */
static __always_inline owners_t sender_of(struct config *config, struct sk_buff *skb,
					  struct dropped *dropped)
{
	u64 identity = sent_identity(skb, config);
	struct sent *packet = get_sent(identity);
	struct cpu_context *cpu = get_cpu_context();
	unsigned char *head;
	u64 outer, inner, is_outer;

	if (!cpu || !packet || !is_sent(packet, identity))
		return 0;
	head = READ(skb, head);
	outer = READ(skb, transport_header);
	inner = READ(skb, inner_transport_header);
	is_outer = is_marked(packet, head + outer);
	if (!(is_outer | is_marked(packet, head + inner)))
		return 0;
	dropped->is_segment = is_equal(packet->mark & MARK_DATAGRAM, 0);
	dropped->sender = packet->sk - number_of_config(cpu, config);
	dropped->transport = choose(is_outer, outer, inner);
	abandon(config, packet);
	return packet->owners;
}

#else

static __always_inline owners_t sender_of(struct config *config, struct sk_buff *skb,
					  struct dropped *dropped)
{
	return 0;
}

#endif

#ifdef HAVE_kfree_skb_rx_sk

/* sk_skb_reason_drop(), net/core/skbuff.c; a sent packet has its socket in skb->sk */
int on_kfree_skb(u64 *ctx)
{
	u32 reason = ctx[2];
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct sock *sk = (struct sock *)ctx[3];
	struct socket_state *state = 0;
	struct turned_away away = {};
	struct dropped dropped = {};
	struct config *config;
	owners_t owners;

	if (!is_drop(reason))
		return 0;
	if (!sk)
		sk = READ(skb, sk);
	config = get_config();
	if (!config)
		return 0;
	if (!sk) {
		owners = sender_of(config, skb, &dropped);
	} else {
		if (!is_full(sk) || !protocol_of(sk))
			return 0;
		find_sender(config, &dropped, sk, skb);
		state = get_state(sk, config, &away);
		owners = state ? state->owners : away.owners;
	}
	if (!owners && !state)
		return 0;
	/* read again: the verifier would follow all above for each reason that was distinguished */
	reason = *(volatile u64 *)&ctx[2];
	drop_for(config, owners, reason, ctx[1],
		 note_dropped_segment(config, owners, &dropped, skb));
	if (is_queue_overflow(reason))
		count_for(config, owners, COUNTER_RECEIVE_QUEUE_OVERFLOWS);
	if (state && !config->reads_listeners && is_listener(sk))
		note_listener_drops(config, sk, state);
	return 0;
}

#else

/* kfree_skb_reason(), net/core/skbuff.c, 5.17 to 6.10: the socket is known of sent packets only */
int on_kfree_sent(u64 *ctx)
{
	u32 reason = ctx[2];
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct config *config = get_config();
	struct dropped dropped = {};
	owners_t owners = 0;
	struct sock *sk;

	if (!is_drop(reason) || !config)
		return 0;
	sk = READ(skb, sk);
	if (!sk) {
		owners = sender_of(config, skb, &dropped);
	} else if (is_full(sk) && protocol_of(sk)) {
		owners = get_owners(sk, config);
		find_sender(config, &dropped, sk, skb);
	}
	if (owners)
		drop_for(config, owners, reason, ctx[1],
			 note_dropped_segment(config, owners, &dropped, skb));
	return 0;
}

#endif

#endif

#ifndef HAVE_kfree_skb_rx_sk

/* __udp_queue_rcv_skb(), net/ipv4/udp.c, net/ipv6/udp.c: for kernels whose kfree_skb names no socket */
int on_udp_fail_queue(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[1];
	struct config *config = get_config();

	if (config)
		count_for(config, get_owners(sk, config), COUNTER_RECEIVE_QUEUE_OVERFLOWS);
	return 0;
}

#endif
