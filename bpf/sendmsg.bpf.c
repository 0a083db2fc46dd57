/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hook that the modules tx and tcp share: the application hands bytes to TCP.
 */

static __always_inline int begin_write(struct sock *sk)
{
	struct config *config = get_config();
	struct socket_state *state;
	struct tcp_sock *tp;

	if (!config)
		return 0;
	state = get_own_state(sk, config);
	if (!state)
		return 0;
	tp = get_tcp_sock(sk);
	if (!tp)
		return 0;
#ifdef MODULE_TCP
	note_write(config, state, sk, tp);
#endif
	return 0;
}

/*
 * tcp_sendmsg_locked(), net/ipv4/tcp.c, 6.16+; ahead of each piece that is copied, under the
 * socket's lock: write_seq is its first byte.
 */
int on_tcp_sendmsg_locked(u64 *ctx)
{
	return begin_write((struct sock *)ctx[0]);
}

/* The same function, at its entry, for kernels without the tracepoint. */
int on_fentry_tcp_sendmsg(u64 *ctx)
{
	return begin_write((struct sock *)ctx[0]);
}

int on_kprobe_tcp_sendmsg(struct pt_regs *ctx)
{
	return begin_write((struct sock *)PT_REGS_PARM1(ctx));
}
