/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one hook that the modules rx and tcp share: a segment reaches an established socket.
 */

/* tcp_rcv_established(), net/ipv4/tcp_input.c, 4.16+; before the segment changes the socket */
int on_tcp_probe(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct sk_buff *skb = (struct sk_buff *)ctx[1];
	struct config *config = get_config();
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)skb->cb;
	struct socket_state *state;
	struct tcp_sock *tp;
	u64 now = 0;

	if (!config)
		return 0;
	state = get_state(sk, config);
	if (!state)
		return 0;
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
