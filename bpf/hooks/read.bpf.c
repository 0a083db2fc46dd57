/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hook that the modules rx and tcp share: bytes leave a TCP socket's queue for their reader.
 */

/*
 * tcp_rcv_space_adjust(), net/ipv4/tcp_input.c, 4.18+, at its entry. All that moves copied_seq calls
 * it afterwards: tcp_recvmsg_locked() for each piece, with MSG_TRUNC too; tcp_read_sock() for
 * splice() and for parsers of messages (strparser); tcp_zerocopy_receive(). A peek calls it
 * without a move. A parser may call it in a softirq: then the current process is not the reader.
 */
int on_tcp_rcv_space_adjust(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct config *config = get_config();
	struct socket_state *state;
	struct turned_away away;
	struct tcp_sock *tp;
	bool is_own;
	u64 now;

	if (!config)
		return 0;
	is_own = is_locked_by_process(sk);
	state = get_used_state(sk, config, is_own, &away);
	if (!state) {
#ifdef MODULE_RX
		lose_received(config, away.users); /* the others' were counted when they came */
#endif
		return 0;
	}
	tp = get_tcp_sock(sk);
	if (!tp)
		return 0;
	if (!note_read_end(state, sk, tp) || !state->owners)
		return 0;
	now = bpf_ktime_get_ns();
#ifdef MODULE_TCP
	note_read(config, state, now);
	note_read_window(config, state, tp);
#endif
#ifdef MODULE_RX
	take_segments(config, sk, state, now, is_own);
#endif
	return 0;
}
