/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hook that the modules rx and tcp share: TCP copies received bytes to the application.
 */

/* skb_copy_datagram_iter(), net/core/datagram.c; from tcp_recvmsg() under the socket's lock */
int on_skb_copy_datagram(u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct sock *sk = READ(skb, sk);
	struct config *config = get_config();
	struct socket_state *state;
	struct tcp_skb_cb *cb;
	u32 start, length = ctx[1];
	u64 now;

	if (!sk || !config || protocol_of(sk) != PROTOCOL_TCP)
		return 0;
	state = get_own_state(sk, config);
	if (!state)
		return 0;
	now = bpf_ktime_get_ns();
	cb = (struct tcp_skb_cb *)skb->cb;
	start = READ(cb, seq);
	if (length != READ(cb, end_seq) - start) /* not the whole skb (or with a FIN) */
		/* tcp_recvmsg_locked() advances it after each copy */
		bpf_probe_read_kernel(&start, sizeof(start), &((struct tcp_sock *)sk)->copied_seq);
#ifdef MODULE_TCP
	note_read(state, start, start + length, now);
	note_read_window(config, state, sk);
#endif
#ifdef MODULE_RX
	read_segments(config, sk, state, start, start + length, now);
	check_read(config, state, start, start + length);
#endif
	return 0;
}
