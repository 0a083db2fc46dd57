/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one hook that the modules rx and tcp share: a segment reaches an established socket.
 */

/* A segment of a socket without room for its state. */
static __always_inline void lose_segment(struct config *config, owners_t owners, struct sock *sk,
					 struct sk_buff *skb)
{
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)skb->cb;
	struct tcp_sock *tp = get_tcp_sock(sk);
	u32 end_seq = READ(cb, end_seq);

	if (!tp)
		return;
	if (READ(cb, tcp_flags) & TCPHDR_FIN)
		end_seq--;
#ifdef MODULE_TCP
	if (is_after(READ(cb, ack_seq), READ(tp, snd_una)))
		lost_for(config, owners, STAGE_TCP_RTT);
#endif
#ifdef MODULE_RX
	if (READ(cb, seq) != end_seq && is_after(end_seq, READ(tp, rcv_nxt)))
		lose_received(config, owners);
#endif
}

/* tcp_rcv_established(), net/ipv4/tcp_input.c, 4.16+; before the segment changes the socket */
int on_tcp_probe(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct sk_buff *skb = (struct sk_buff *)ctx[1];
	struct config *config = get_config();
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)skb->cb;
	struct socket_state *state;
	struct turned_away away;
	struct tcp_sock *tp;
	u64 now = 0;

	if (!config)
		return 0;
	state = get_state(sk, config, &away);
	if (!state) {
		if (away.owners)
			lose_segment(config, away.owners, sk, skb);
		return 0;
	}
	tp = get_tcp_sock(sk);
	if (!tp)
		return 0;
	if (READ(cb, seq) != READ(cb, end_seq)) { /* a pure ACK needs no time */
		now = bpf_ktime_get_ns();
		note_read_end(state, sk, tp);
	}
#ifdef MODULE_TCP
	sample_rtt(config, state, tp, skb);
	note_arrival(config, state, sk, tp, skb, now);
	note_own_window(config, state, tp, READ(skb, len));
	note_peer_window(config, state, tp);
#endif
#ifdef MODULE_RX
	receive_segment(config, sk, state, tp, skb, now);
#endif
	return 0;
}
