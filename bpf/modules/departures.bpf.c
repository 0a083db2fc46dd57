/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tx, its queues by programs on devices (tcx, 6.6+) instead of the tracepoint net_dev_queue.
 * They note the same in `sent`. As in arrivals.bpf.c, fields are read by PEEK(), and each packet
 * passes as it is.
 */

#ifdef WITH_ON_POD_EGRESS

/* As departure_of(). */
static __always_inline struct departure departure_at(struct config *config, struct sk_buff *skb,
						     u32 inum)
{
	struct net_device *dev = PEEK(skb, dev);
	unsigned char *head = PEEK(skb, head);
	struct departure departure = DEPARTURE(PEEK, config, skb, head, dev, inum);

	return departure;
}

static __always_inline void depart_segment(struct config *config, struct bpf_sock *found,
					   struct departure *departure, struct sent *packet)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(found);
	struct tcp_segment segment;
	struct socket_state *state;
	struct turned_away away;

	if (!tp)
		return;
	state = get_state((struct sock *)tp, config, &away);
	if (!(state ? state->owners : away.owners) || !is_sampled(config))
		return;
	segment = parse_segment(departure);
	if (!segment.length) {
		if (segment.is_syn && state)
			begin_syn(config, departure, packet, state->owners, segment.seq);
		return;
	}
	if (state)
		begin_segment(config, departure, packet, (struct sock *)tp, state, segment);
	else
		lose_sent(config, away.owners, true);
}

/* No BTF type of a datagram's socket is available here. Its owners are all that is needed of it. */
static __always_inline void depart_datagram(struct config *config, struct bpf_sock *found,
					    struct departure *departure, struct sent *packet)
{
	struct netns_entry *netns = find_netns(config, departure->netns);
	u16 local = found->src_port, remote = bpf_ntohs((u16)found->dst_port);
	owners_t by_cgroup = owners_of_cgroup(config, cgroup_of((struct sock *)departure->sk));
	owners_t owners = 0;

	if (netns)
		owners = add_owners(0, netns->owners, PROTOCOL_UDP, local, remote);
	owners = add_owners(owners, by_cgroup, PROTOCOL_UDP, local, remote);
	if (!owners || !is_sampled(config))
		return;
	begin_packet(config, departure, packet, owners);
	packet->mark = datagram_mark(departure);
#if TRACE
	__builtin_memset(&packet->user, 0, sizeof(packet->user));
	read_datagram_endpoints(departure->protocol, departure->head + departure->network, true,
				&packet->endpoints);
#endif
	packet->tag = sent_tag(departure->identity, packet);
}

/* sch_handle_egress(), net/core/dev.c: a packet leaves by a device of a target's namespace. */
int on_pod_egress(struct __sk_buff *ctx)
{
	struct bpf_sock *found = ctx->sk; /* here, since it takes the argument as it came */
	struct sk_buff *skb = (struct sk_buff *)ctx;
	struct config *config = get_config();
	struct departure departure;
	struct sent *packet;

	if (!config || !config->sees_departures || !found)
		return TCX_NEXT;
	found = bpf_sk_fullsock(found);
	packet = get_sent(sent_identity(skb, config));
	if (!found || !packet || (found->family != AF_INET && found->family != AF_INET6))
		return TCX_NEXT;
	departure = departure_at(config, skb, netns_at(PEEK(skb, dev)));
	if (is_sent(packet, departure.identity)) {
		if (go_on(packet, &departure))
			return TCX_NEXT;
		abandon_unseen(config, packet);
	}
	if (found->protocol == IPPROTO_TCP)
		depart_segment(config, found, &departure, packet);
	else if (found->protocol == IPPROTO_UDP && found->type == SOCK_DGRAM)
		depart_datagram(config, found, &departure, packet);
	return TCX_NEXT;
}

/* A packet comes to a device of the host's that has a queue. */
int on_queue_egress(struct __sk_buff *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx;
	struct config *config = get_config();
	struct departure departure;
	struct sent *packet;
	u64 identity;

	if (!config || !config->sees_departures)
		return TCX_NEXT;
	identity = sent_identity(skb, config);
	packet = get_sent(identity);
	if (!packet || !is_sent(packet, identity))
		return TCX_NEXT;
	departure = departure_at(config, skb, HOST_NETNS);
	if (is_forwarded(packet, &departure))
		queue_on_host(packet, &departure, bpf_ktime_get_ns());
	else
		abandon(config, packet);
	return TCX_NEXT;
}

#endif
