/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hook that the modules rx and tcp share: a segment reaches an established socket. It is the
 * tracepoint tcp_probe, or a program on the targets' cgroups: then strangers' segments run none.
 *
 * The tracepoint has the socket's lock. The program on cgroups has not: a process may read or write the
 * socket at the same time, and segments that came before may still wait in its backlog. So it is only
 * while neither is so that it corrects what a reader also changes.
 */

/* A segment of a socket without room for its state. */
static __always_inline void lose_segment(struct config *config, owners_t owners, struct sock *sk,
					 struct incoming *incoming)
{
	struct tcp_sock *tp = get_tcp_sock(sk);

	if (!tp)
		return;
#ifdef MODULE_TCP
	if (is_after(incoming->ack_seq, READ(tp, snd_una)))
		lost_for(config, owners, STAGE_TCP_RTT);
#endif
#ifdef MODULE_RX
	if (incoming->seq != incoming->end_seq && is_after(incoming->end_seq, READ(tp, rcv_nxt)))
		lose_received(config, owners);
#endif
}

static __always_inline void note_segment(struct config *config, struct socket_state *state,
					 struct sock *sk, struct tcp_sock *tp,
					 struct incoming *incoming, u64 now)
{
	if ((incoming->seq != incoming->end_seq || incoming->is_end) &&
	    (!incoming->is_beside || !state->is_read_seq_known))
		note_read_end(state, sk, tp);
#ifdef MODULE_TCP
	if (state->recovering)
		follow_recovery(config, sk, state, tp, incoming->ack_seq);
	sample_rtt(config, state, tp, incoming);
	note_arrival(config, state, sk, tp, incoming, now);
	note_own_window(config, state, tp, incoming);
	note_peer_window(config, state, incoming);
#endif
#ifdef MODULE_RX
	receive_segment(config, sk, state, tp, incoming, now);
#endif
}

/* A header of TCP as it is sent, with time stamps as all of Linux's segments have them. */
struct tcp_header {
	u16 ports[2];
	u32 seq;
	u32 ack_seq;
	u8 header_words; /* in the upper half */
	u8 flags;
	u16 window;
	u16 checksum;
	u16 urgent;
	u32 options; /* padding, kind and length */
	u32 stamp;
};
#define STAMP_WORDS 8
#define STAMP_OPTIONS 0x0101080aU /* tcp_parse_aligned_timestamp(), net/ipv4/tcp_input.c */

static __always_inline bool read_header(struct tcp_header *header, unsigned char *transport)
{
	return !bpf_probe_read_kernel(header, sizeof(*header), transport);
}

static __always_inline void set_stamp(struct incoming *incoming, struct tcp_header *header)
{
	/* no branch, as in is_above() and for the same reason */
	u64 words = header->header_words >> 4;

	incoming->has_stamp = (1 - is_below_0(words - STAMP_WORDS)) &
			      is_equal(bpf_ntohl(header->options), STAMP_OPTIONS);
	incoming->stamp = bpf_ntohl(header->stamp);
}

#ifdef MODULE_TCP

static __always_inline void read_path(struct config *config, struct socket_state *state,
				      struct sock *sk, struct tcp_sock *tp,
				      struct incoming *incoming, struct sk_buff *skb, u64 now)
{
	struct socket_path *path = get_path(state, sk, tp, incoming);
	struct tcp_header header;

	if (!path)
		return;
	incoming->is_quick = is_quick(path, tp, incoming, now);
	if (!incoming->is_quick &&
	    read_header(&header, READ(skb, head) + READ(skb, transport_header)))
		set_stamp(incoming, &header);
	note_path(config, state, path, tp, incoming, now);
}

#endif

/* tcp_rcv_established(), net/ipv4/tcp_input.c, 4.16+; before the segment changes the socket */
int on_tcp_probe(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct sk_buff *skb = (struct sk_buff *)ctx[1];
	struct config *config = get_config();
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)skb->cb;
	struct incoming incoming = {};
	struct socket_state *state;
	struct turned_away away;
	struct tcp_sock *tp;
	u64 now;

	if (!config || config->sees_segments)
		return 0;
	state = get_state(sk, config, &away);
	if (!state && !away.owners)
		return 0;
	incoming.identity = identity_of(skb, config);
	incoming.seq = READ(cb, seq);
	incoming.end_seq = READ(cb, end_seq);
	incoming.ack_seq = READ(cb, ack_seq);
	incoming.size = READ(skb, len);
	incoming.is_end = READ(cb, tcp_flags) & TCPHDR_FIN;
	if (incoming.is_end)
		incoming.end_seq--;
	if (!state) {
		lose_segment(config, away.owners, sk, &incoming);
		return 0;
	}
	tp = get_tcp_sock(sk);
	if (!tp)
		return 0;
	incoming.is_closing = !READ(tp, snd_wnd);
	now = bpf_ktime_get_ns();
#ifdef MODULE_TCP
	read_path(config, state, sk, tp, &incoming, skb, now);
#endif
	note_segment(config, state, sk, tp, &incoming, now);
	return 0;
}

#ifdef WITH_ON_CGROUP_INGRESS

/* The header at the socket, tcp_filter(), net/ipv4/tcp_ipv4.c; false: it cannot be read. */
static __always_inline bool read_incoming(struct incoming *incoming, struct sk_buff *skb)
{
	u16 network = PEEK(skb, network_header), transport = PEEK(skb, transport_header);
	struct tcp_header header;

	if (!read_header(&header, PEEK(skb, head) + transport))
		return false;
	/* the program sees the skb from its network header on, __cgroup_bpf_run_filter_skb() */
	incoming->size = PEEK(skb, len) - (transport - network);
	incoming->seq = bpf_ntohl(header.seq);
	incoming->end_seq = incoming->seq + incoming->size - (header.header_words >> 4) * 4;
	incoming->ack_seq = bpf_ntohl(header.ack_seq);
	incoming->is_end = header.flags & TCPHDR_FIN;
	/* while others wait before it, none would see it closed by the one before */
	incoming->is_closing = !header.window;
	set_stamp(incoming, &header);
	return !(header.flags & TCPHDR_SYN);
}

/* Of one that is closed on a side, only the ACK matters: of what was sent again. */
static __always_inline void receive_closing(struct config *config, struct sock *sk,
					    struct tcp_sock *tp, struct sk_buff *skb)
{
#ifdef MODULE_TCP
	struct socket_state *state = find_state(sk);
	struct incoming incoming = {};

	if (state && state->recovering && state->generation == config->generation &&
	    read_incoming(&incoming, skb))
		follow_recovery(config, sk, state, tp, incoming.ack_seq);
#endif
}

/*
 * sk_filter_trim_cap(), net/core/filter.c, for a socket of a target's cgroup; before the socket is
 * locked, or the segment put into its backlog. The result is always 1: it may pass.
 */
int on_cgroup_ingress(struct __sk_buff *ctx)
{
	struct bpf_sock *found = ctx->sk; /* here, since it takes the argument as it came */
	struct sk_buff *skb = (struct sk_buff *)ctx;
	struct config *config = get_config();
	struct incoming incoming = {};
	struct socket_path *path;
	struct socket_state *state;
	struct turned_away away;
	struct tcp_sock *tp;
	struct sock *sk;
	u64 now;

	if (!config || !config->sees_segments || !found)
		return 1;
	tp = bpf_skc_to_tcp_sock(found);
	if (!tp)
		return 1;
	sk = (struct sock *)tp;
	if (READ(sk, __sk_common.skc_state) != TCP_ESTABLISHED) {
		receive_closing(config, sk, tp, skb);
		return 1;
	}
	state = get_state(sk, config, &away);
	if ((!state && !away.owners) || !read_incoming(&incoming, skb))
		return 1;
	incoming.identity = identity_of(skb, config);
	incoming.is_beside = READ(sk, sk_lock.owned) || READ(sk, sk_backlog.len);
	if (!state) {
		lose_segment(config, away.owners, sk, &incoming);
		return 1;
	}
	now = bpf_ktime_get_ns();
#ifdef MODULE_TCP
	path = get_path(state, sk, tp, &incoming);
	if (path)
		note_path(config, state, path, tp, &incoming, now);
#endif
	note_segment(config, state, sk, tp, &incoming, now);
	return 1;
}

#endif
