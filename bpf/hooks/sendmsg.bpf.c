/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hook that the modules tx and tcp share: the application hands bytes to TCP.
 *
 * Under the socket's lock, ahead of the copy: tp->write_seq is the first byte's sequence number.
 */

/*
 * A write to a socket without room for its state: perhaps an answer, or a request. The pieces that
 * follow one that waits are its continuation.
 */
static __always_inline void lose_write(struct config *config, owners_t owners, struct sock *sk)
{
#ifdef MODULE_TCP
	struct tcp_sock *tp = get_tcp_sock(sk);
	struct turns turns = {};

	if (!tp || READ(tp, write_seq) != READ(tp, snd_nxt))
		return;
	if (role_of(sk, &turns) == ROLE_SERVER)
		lost_for(config, owners, STAGE_APP_RESPONSE);
	else
		lost_for(config, owners, STAGE_PEER_RESPONSE);
#endif
}

static __always_inline struct socket_state *get_writer(struct sock *sk, struct config *config)
{
	struct socket_state *state;
	struct turned_away away;

	if (!config)
		return 0;
	state = get_own_state(sk, config, &away);
	if (!state && away.owners)
		lose_write(config, away.owners, sk);
	return state;
}

#ifdef WITH_ON_TCP_SENDMSG_LOCKED

/* tcp_sendmsg_locked(), net/ipv4/tcp.c, 6.16+; ahead of each piece that is copied */
int on_tcp_sendmsg_locked(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct config *config = get_config();
	struct socket_state *state = get_writer(sk, config);
	struct tcp_sock *tp;
	u64 now;

	if (!state)
		return 0;
	tp = get_tcp_sock(sk);
	if (!tp)
		return 0;
	now = bpf_ktime_get_ns();
#ifdef MODULE_TX
	note_piece(state, sk, tp, (struct msghdr *)ctx[1], (struct sk_buff *)ctx[2], ctx[3], now);
#endif
#ifdef MODULE_TCP
	note_write(config, state, sk, tp, now);
#endif
	return 0;
}

#endif

/* The same function, at its entry, for kernels without the tracepoint. */
static __always_inline int handle_sendmsg(struct sock *sk, u32 length)
{
	struct config *config = get_config();
	struct socket_state *state = get_writer(sk, config);
	struct tcp_sock *tp;
	u64 now;

	if (!state)
		return 0;
	tp = get_tcp_sock(sk);
	if (!tp)
		return 0;
	now = bpf_ktime_get_ns();
#ifdef MODULE_TX
	note_message(state, sk, tp, length, now);
#endif
#ifdef MODULE_TCP
	note_write(config, state, sk, tp, now);
#endif
	return 0;
}

/* sk_stream_wait_memory(), net/core/stream.c; not only for TCP */
static __always_inline int handle_wait(struct sock *sk, bool is_over)
{
	struct config *config = get_config();
	struct socket_state *state;
	struct turned_away away;
	struct tcp_sock *tp;

	if (!config || protocol_of(sk) != PROTOCOL_TCP)
		return 0;
	state = get_own_state(sk, config, &away);
	if (!state)
		return 0;
	tp = get_tcp_sock(sk);
	if (!tp)
		return 0;
#ifdef MODULE_TX
	if (is_over)
		note_rest(sk, state, tp);
	else
		give_up_rest(sk, tp);
#endif
	return 0;
}

#ifdef WITH_ON_FENTRY_TCP_SENDMSG

int on_fentry_tcp_sendmsg(u64 *ctx)
{
	return handle_sendmsg((struct sock *)ctx[0], ctx[2]);
}

int on_fexit_stream_wait(u64 *ctx)
{
	return (int)ctx[2] ? 0 : handle_wait((struct sock *)ctx[0], true);
}

#endif

#ifdef WITH_ON_KPROBE_TCP_SENDMSG

int on_kprobe_tcp_sendmsg(struct pt_regs *ctx)
{
	return handle_sendmsg((struct sock *)PT_REGS_PARM1(ctx), PT_REGS_PARM3(ctx));
}

/* At its entry: a kretprobe has no arguments, and misses calls if too many of them sleep. */
int on_kprobe_stream_wait(struct pt_regs *ctx)
{
	return handle_wait((struct sock *)PT_REGS_PARM1(ctx), false);
}

#endif
