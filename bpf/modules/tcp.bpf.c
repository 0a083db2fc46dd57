/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tcp: the stages and counters of connections.
 */

/*
 * The error of ICMP that a socket of IPv4 got while its own connect() held it, by ip_icmp_error(),
 * net/ipv4/ip_sockglue.c, 5.8+: it has no sk_err, and SO_ERROR takes its sk_err_soft, but it stays in the error
 * queue: tcp_v4_err(), net/ipv4/tcp_ipv4.c. 0: none. Of IPv6, the SYN is sent again, and the error comes again.
 */
static __always_inline int error_of_icmp(struct sock *sk)
{
	struct sk_buff *skb = PEEK(&sk->sk_error_queue, next);
	u64 is_empty = is_equal(PEEK(&sk->sk_error_queue, qlen), 0); /* `skb`: its head */

	return PEEK((struct sock_exterr_skb *)skb->cb, ee.ee_errno) & (is_empty - 1);
}

/* A connect that failed is a count by cause, never a sample. `has_segment`: the peer sent one. */
static __always_inline u32 connect_failure(int error, bool has_segment)
{
	switch (error) {
	case 0: /* closed by the application before an answer came */
		return COUNTER_CONNECT_ABORTED;
	case ECONNREFUSED:
		return has_segment ? COUNTER_CONNECT_REFUSED : COUNTER_CONNECT_REJECTED;
	case ETIMEDOUT:
		return COUNTER_CONNECT_TIMED_OUT;
	case EHOSTUNREACH:
	case ENETUNREACH:
		return COUNTER_CONNECT_UNREACHABLE;
	}
	return COUNTER_CONNECT_FAILED_OTHER;
}

/* An application may give up before the SYN is sent again, so how long it waited is counted, too. */
static __always_inline void fail_connect(struct config *config, struct sock *sk,
					 struct tcp_sock *tp, struct socket_state *state, u64 ns)
{
	int error = READ(sk, sk_err);
	u32 failure = connect_failure(error ? error : error_of_icmp(sk), READ(tp, segs_in));

	asm volatile("" : "+r"(failure)); /* one path for all causes */
	if (failure >= NR_COUNTERS)
		return;
	add_both_for(config, state->owners, failure, 1, COUNTER_CONNECT_ABORTED_NS,
		     failure == COUNTER_CONNECT_ABORTED ? ns : 0);
}

/* connect() failed before its SYN: tcp_v4_connect(), net/ipv4/tcp_ipv4.c, found no local port. */
static __always_inline bool is_unsent(struct tcp_sock *tp)
{
	return !READ(tp, segs_out);
}

static __always_inline void end_connect(struct config *config, struct sock *sk,
					struct socket_state *state, u32 new_state)
{
	struct tcp_sock *tp = get_tcp_sock(sk);
	u64 ns;

	if (tp && new_state == TCP_ESTABLISHED)
		begin_turns(&state->turns, tp, ROLE_CLIENT);
	if (!state->connect_ns)
		return;
	ns = bpf_ktime_get_ns() - state->connect_ns;
	if (new_state == TCP_ESTABLISHED)
		record_for(config, state->owners, STAGE_TCP_CONNECT, ns);
	else if (tp && new_state == TCP_CLOSE && !is_unsent(tp))
		fail_connect(config, sk, tp, state, ns);
	state->handshake_ns = saturate(ns);
	if (tp && READ(tp, total_retrans)) { /* nothing but its SYN */
		state->handshake_ns = 0;
		count_for(config, state->owners, COUNTER_CONNECT_RETRANSMITS);
		record_long_for(config, state->owners, STAGE_TCP_RECOVERY, ns);
		if (new_state != TCP_CLOSE)
			note_repeated_syn(config, state, sk, tp, ns);
	}
	state->connect_ns = 0;
}

/* Of the child of a SYN cookie, `srtt_us` comes of the time stamp that the client repeated. */
#define OF_COOKIE 0x1f /* options in the low bits: cookie_init_timestamp(), net/ipv4/syncookies.c */
#define WSCALE_OK 0x0008

static __always_inline bool is_of_cookie(struct tcp_sock *tp, u32 rtt_us)
{
	u32 stamp = READ(tp, rx_opt.rcv_tsecr), options;
	u16 bits = 0; /* of struct tcp_options_received, include/linux/tcp.h, behind rcv_tsecr */

	if (rtt_us % 1000)
		return false; /* no multiple of its unit, which is a millisecond */
	bpf_probe_read_kernel(&bits, sizeof(bits), (void *)&tp->rx_opt.rcv_tsecr + sizeof(stamp));
	options = (bits & WSCALE_OK ? bits >> 8 & 0xf : 0xf) | (bits & 0x70 ? 0x10 : 0);
	return (stamp & OF_COOKIE) == options;
}

/*
 * The kernel's time from SYN-ACK to ACK is no round trip if the ACK is not the client's first one. If it
 * has data, the one before was lost, or is not sent (TCP_QUICKACK 0), or the listener dropped it, as
 * TCP_DEFER_ACCEPT demands: tcp_check_req(), net/ipv4/tcp_minisocks.c. Then it contains a pause of the
 * client. tcp_child_process() has counted the segment; with TCP Fast Open the SYN had data.
 */
static __always_inline bool is_round_trip(struct tcp_sock *tp, u32 rtt_us)
{
	return !(READ(tp, data_segs_in) && !READ(tp, bytes_received)) && !is_of_cookie(tp, rtt_us);
}

/*
 * A passive open spends its time as a request socket, which no tracepoint shows; the child's own
 * SYN_RECV lasts a microsecond. The kernel times SYN-ACK to ACK itself, tcp_synack_rtt_meas() from
 * tcp_check_req(), and leaves it in the child's srtt_us (eighths of a microsecond), unless the
 * SYN-ACK was sent twice (Karn's rule). total_retrans has what was sent again:
 * tcp_create_openreq_child(), net/ipv4/tcp_minisocks.c.
 */
static __always_inline void end_handshake(struct config *config, struct sock *sk,
					  struct socket_state *state)
{
	struct tcp_sock *tp = get_tcp_sock(sk);
	u32 rtt_us;
	u64 ns;

	if (!tp || state->is_established)
		return;
	state->is_established = 1;
	begin_turns(&state->turns, tp, ROLE_SERVER);
	state->established_ns = bpf_ktime_get_ns();
#ifdef MODULE_RX
	receive_with_handshake(config, sk, state, tp, state->established_ns);
#endif
	rtt_us = READ(tp, srtt_us) >> 3;
	ns = (u64)rtt_us * 1000;
	if (rtt_us && !is_round_trip(tp, rtt_us)) {
		state->is_rtt_untrue = 1;
		ns = 0;
	}
	if (READ(tp, total_retrans))
		end_repeated_handshake(sk, state, tp);
	else if (!ns)
		unmatched_for(config, state->owners, STAGE_TCP_HANDSHAKE, 1);
	else if (state->is_candidate)
		state->handshake_ns = saturate(ns);
	else
		record_for(config, state->owners, STAGE_TCP_HANDSHAKE, ns);
}

/*
 * accept() returns this socket. It may do so before the connection is established: with TCP Fast
 * Open, or with an accepting thread that is awake, since tcp_check_req() queues the child before
 * tcp_child_process() changes its state. Or it was established before we watched.
 */
static __always_inline int end_accept(struct sock *sk)
{
	struct config *config = get_config();
	struct socket_state *state;
	struct turned_away away;

	if (!config || !sk)
		return 0;
	state = get_own_state(sk, config, &away);
	if (!state) {
		lost_for(config, away.owners, STAGE_TCP_ACCEPT);
		return 0;
	}
	if (state->established_ns)
		record_for(config, state->owners, STAGE_TCP_ACCEPT,
			   bpf_ktime_get_ns() - state->established_ns);
	else
		unmatched_for(config, state->owners, STAGE_TCP_ACCEPT, 1);
	state->established_ns = 0;
	return 0;
}

#ifdef WITH_ON_FEXIT_ACCEPT

/* inet_csk_accept(), net/ipv4/inet_connection_sock.c; its return value follows its arguments */
int on_fexit_accept(u64 *ctx)
{
#ifdef HAVE_proto_accept_arg_is_empty /* 6.10+: (sk, arg), before that (sk, flags, err, kern) */
	return end_accept((struct sock *)ctx[2]);
#else
	return end_accept((struct sock *)ctx[4]);
#endif
}

#endif

#ifdef WITH_ON_KRETPROBE_ACCEPT

int on_kretprobe_accept(struct pt_regs *ctx)
{
	return end_accept((struct sock *)PT_REGS_RC(ctx));
}

#endif

#if defined(WITH_ON_PEER_NAME4) || defined(WITH_ON_PEER_NAME6)

/*
 * accept() asks for the peer's address if its caller has room for one, do_accept(), net/socket.c. So
 * does getpeername(), which may come at any time later: if something was read before, it is not known
 * when the connection was accepted. The owners stay as they are, see close_recovery().
 */
static __always_inline int end_named_accept(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *found = ctx->sk;
	struct config *config = get_config();
	struct socket_state *state;
	struct tcp_sock *tp;
	u64 ns;

	if (!config || !found)
		return 1;
	tp = bpf_skc_to_tcp_sock(found);
	state = tp ? find_state((struct sock *)tp) : 0;
	if (!state || !state->established_ns || state->generation != config->generation)
		return 1;
	ns = bpf_ktime_get_ns() - state->established_ns;
	state->established_ns = 0;
	if (READ(tp, copied_seq) == READ(tp, rcv_nxt) - (u32)READ(tp, bytes_received))
		record_for(config, state->owners, STAGE_TCP_ACCEPT, ns);
	else
		unmatched_for(config, state->owners, STAGE_TCP_ACCEPT, 1);
	return 1;
}

/* BPF_CGROUP_INET4_GETPEERNAME: inet_getname(), net/ipv4/af_inet.c, 5.8+ */
int on_peer_name4(struct bpf_sock_addr *ctx)
{
	return end_named_accept(ctx);
}

/* BPF_CGROUP_INET6_GETPEERNAME: inet6_getname(), net/ipv6/af_inet6.c, 5.8+ */
int on_peer_name6(struct bpf_sock_addr *ctx)
{
	return end_named_accept(ctx);
}

#endif

static __always_inline void end_last_message(struct config *config, struct socket_state *state,
					     struct sock *sk);

/* Less is no wait that a person would notice. */
#define SLOW_CONNECT_NS 1000000

/*
 * A connection ends. Its connect was slow if it took twice as long as a round trip of its data, and no SYN was
 * sent again: who answers SYNs was late, or what is on the path before it. Without data, the least round trip
 * is the connect's own.
 */
static __always_inline void note_slow_connect(struct config *config, struct socket_state *state,
					      struct sock *sk)
{
	struct tcp_sock *tp = get_tcp_sock(sk);
	u64 took_ns = state->is_established ? 0 : state->handshake_ns, least_ns;

	state->handshake_ns = 0;
	if (!tp || !took_ns)
		return;
	least_ns = (u64)READ(tp, rtt_min.s[0].v) * 1000;
	if (took_ns >= 2 * least_ns && took_ns - least_ns >= SLOW_CONNECT_NS)
		add_time_for(config, state->owners, COUNTER_SLOW_CONNECTS, COUNTER_SLOW_CONNECTS_NS,
			     took_ns - least_ns);
}

/* We close our side first, or the peer did. */
static __always_inline void begin_end(struct config *config, struct socket_state *state,
				      struct sock *sk, u32 new_state)
{
	end_last_message(config, state, sk);
	note_slow_connect(config, state, sk);
	note_late_end(config, state, sk, new_state == TCP_CLOSE_WAIT);
	end_requests(config, state, sk, new_state == TCP_CLOSE_WAIT);
}

/*
 * The peer has closed before, and this side wrote a request all the same: a pooled connection that its
 * server had just given up. The owners stay as they are, see close_recovery().
 */
static __always_inline void end_late_request(struct config *config, struct sock *sk)
{
	struct socket_state *state = find_state(sk);

	if (state && state->turns.request_ns && state->generation == config->generation)
		end_requests(config, state, sk, true);
}

static __always_inline void note_change(struct config *config, struct sock *sk,
					struct socket_state *state, u32 old_state, u32 new_state,
					bool sees_calls)
{
	if (new_state == TCP_SYN_SENT) {
		if (sees_calls)
			count_for(config, state->owners, COUNTER_CONNECTS_SENT);
		state->connect_ns = bpf_ktime_get_ns();
		state->handshake_ns = 0;
		state->is_established = 0; /* it may have been another connection, or a listener */
		state->is_rtt_untrue = 0;
		state->is_listener_known = 0;
	} else if (old_state == TCP_SYN_SENT)
		end_connect(config, sk, state, new_state);
	else if (new_state == TCP_ESTABLISHED)
		end_handshake(config, sk, state);
	else
		begin_end(config, state, sk, new_state);
}

static __always_inline bool is_followed(u32 old_state, u32 new_state)
{
	return new_state == TCP_SYN_SENT || old_state == TCP_SYN_SENT ||
	       (old_state == TCP_SYN_RECV && new_state == TCP_ESTABLISHED) ||
	       (old_state == TCP_ESTABLISHED &&
		(new_state == TCP_FIN_WAIT1 || new_state == TCP_CLOSE_WAIT));
}

/*
 * `sees_listeners`: their counting begins in listen() and ends with close(). `sees_calls`: calls of connect()
 * are counted, and those that send a SYN.
 */
static __always_inline void change_state(struct config *config, struct sock *sk, u32 old_state,
					 u32 new_state, bool is_own, bool sees_listeners,
					 bool sees_calls)
{
	bool is_listening = sees_listeners && config->reads_listeners &&
			    (new_state == TCP_LISTEN || old_state == TCP_LISTEN);
	struct socket_state *state;
	struct turned_away away;

	if (!is_listening && !is_followed(old_state, new_state)) {
		if (new_state == TCP_FIN_WAIT2 || new_state == TCP_CLOSE)
			close_recovery(config, sk);
		if (old_state == TCP_CLOSE_WAIT)
			end_late_request(config, sk);
		return;
	}
	state = get_used_state(sk, config, is_own, &away);
#ifdef WITH_LISTEN_OVERFLOWS
	if (is_listening) {
		if (state)
			count_overflows(config, sk, state);
		return;
	}
#endif
	if (state)
		note_change(config, sk, state, old_state, new_state, sees_calls);
	else if (new_state == TCP_SYN_SENT)
		lost_for(config, away.owners, STAGE_TCP_CONNECT);
	else if (old_state == TCP_SYN_RECV)
		lost_for(config, away.owners, STAGE_TCP_HANDSHAKE);
}

/* Here a connect counts when it ends. One that has failed before its SYN was still called. */
static __always_inline void count_ended_connect(struct config *config, struct sock *sk)
{
	struct socket_state *state = find_state(sk);
	struct tcp_sock *tp = get_tcp_sock(sk);

	if (tp && state && state->connect_ns && state->generation == config->generation)
		add_both_for(config, state->owners, COUNTER_CONNECT_CALLS, 1, COUNTER_CONNECTS_SENT,
			     !is_unsent(tp));
}

static __always_inline int change_any_state(u64 *ctx, bool sees_listeners)
{
	struct sock *sk = (struct sock *)ctx[0];
	u32 old_state = ctx[1], new_state = ctx[2];
	struct config *config = get_config();

	if (!config || protocol_of(sk) != PROTOCOL_TCP)
		return 0;
	if (old_state == TCP_SYN_SENT)
		count_ended_connect(config, sk);
	/* SYN_SENT is set in connect(), LISTEN in listen() */
	change_state(config, sk, old_state, new_state,
		     new_state == TCP_SYN_SENT || new_state == TCP_LISTEN, sees_listeners, false);
#if !TYPED
	if (new_state == TCP_CLOSE)
		forget_socket(sk);
#endif
	return 0;
}

/* inet_sk_set_state(), net/ipv4/af_inet.c, 4.16+ */

#ifdef WITH_ON_INET_SOCK_SET_STATE

int on_inet_sock_set_state(u64 *ctx)
{
	return change_any_state(ctx, false);
}

#endif

#ifdef WITH_ON_STATE_OF_ANY_SOCKET

int on_state_of_any_socket(u64 *ctx)
{
	return change_any_state(ctx, true);
}

#endif

#ifdef WITH_ON_SOCK_OPS

static __always_inline int begin_call(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *found = ctx->sk;
	struct config *config = get_config();
	struct socket_state *state;
	struct turned_away away;
	struct tcp_sock *tp;

	if (!config || !found)
		return 1;
	tp = bpf_skc_to_tcp_sock(found);
	state = tp ? get_state((struct sock *)tp, config, &away) : 0;
	if (state)
		count_for(config, state->owners, COUNTER_CONNECT_CALLS);
	return 1;
}

/*
 * The same changes by tcp_call_bpf(), include/net/tcp.h, for the sockets of a target's cgroup.
 * inet_listen(), tcp_connect() and tcp_init_transfer() call it for every socket, tcp_set_state() only
 * for one with the flag. A listener that is older than the program has none, and another's program
 * may clear it. So an end is taken from either, and counts once. Of a child of TCP Fast Open,
 * tcp_init_transfer() comes with the SYN: its handshake is not over.
 */
static __always_inline void call_sock_ops(struct bpf_sock_ops *ops, struct config *config,
					  struct sock *sk, struct tcp_sock *tp)
{
	u32 op = ops->op, old_state = TCP_CLOSE, new_state = TCP_SYN_SENT;

	if (op == BPF_SOCK_OPS_STATE_CB) {
		old_state = ops->args[0];
		new_state = ops->args[1];
	} else
		bpf_sock_ops_cb_flags_set(ops,
					  ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		new_state = TCP_LISTEN;
	else if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
		old_state = TCP_SYN_SENT;
		new_state = TCP_ESTABLISHED;
	} else if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		if (READ(tp, fastopen_rsk))
			return;
		old_state = TCP_SYN_RECV;
		new_state = TCP_ESTABLISHED;
	}
	change_state(config, sk, old_state, new_state, false, true, true);
}

/*
 * BPF_CGROUP_INET4_CONNECT: tcp_v4_pre_connect(), net/ipv4/tcp_ipv4.c, 4.17+. A connect() that fails before its
 * SYN does not get to sock_ops: without a route or a local port, or where a program of others refuses it.
 */
int on_connect4(struct bpf_sock_addr *ctx)
{
	return begin_call(ctx);
}

/* BPF_CGROUP_INET6_CONNECT: tcp_v6_pre_connect(), net/ipv6/tcp_ipv6.c, 4.17+ */
int on_connect6(struct bpf_sock_addr *ctx)
{
	return begin_call(ctx);
}

int on_sock_ops(struct bpf_sock_ops *ops)
{
	struct config *config = get_config();
	struct bpf_sock *found;
	struct tcp_sock *tp;
	u32 op = ops->op;

	if (!config ||
	    (op != BPF_SOCK_OPS_STATE_CB && op != BPF_SOCK_OPS_TCP_CONNECT_CB &&
	     op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	     op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_TCP_LISTEN_CB))
		return 1;
	found = ops->sk;
	if (!found)
		return 1;
	tp = bpf_skc_to_tcp_sock(found);
	if (tp)
		call_sock_ops(ops, config, (struct sock *)tp, tp);
	return 1;
}

#endif

/*
 * The retransmission timer has expired: tcp_update_rto_stats(), net/ipv4/tcp_timer.c, counts in
 * icsk_retransmits, and tcp_ack() zeroes it when snd_una moves on. Later retransmits of the same
 * time-out change neither; nor does a tail loss probe.
 */
static __always_inline void note_timeout(struct config *config, struct socket_state *state,
					 struct recovery *recovery, struct tcp_sock *tp)
{
	u8 number = READ(tp, inet_conn.icsk_retransmits);
	u32 seq = READ(tp, snd_una);

	if (!number || (number == recovery->timeout_number && seq == recovery->timeout_seq))
		return;
	recovery->timeout_number = number;
	recovery->timeout_seq = seq;
	count_for(config, state->owners, COUNTER_RTOS);
}

/*
 * __tcp_retransmit_skb(), net/ipv4/tcp_output.c; since 6.17 also for failed retransmits, such as
 * while the first transmission still waits in a queue of this machine (EBUSY).
 */
int on_tcp_retransmit_skb(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct sk_buff *skb = (struct sk_buff *)ctx[1];
	struct config *config = get_config();
	struct socket_state *state;
	struct recovery *recovery;
	struct turned_away away;
	struct tcp_sock *tp;

	if (!config || !is_full(sk))
		return 0;
	state = get_state(sk, config, &away);
	tp = state ? get_tcp_sock(sk) : 0;
	recovery = tp ? get_recovery(sk) : 0;
	if (recovery)
		note_timeout(config, state, recovery, tp);
#ifdef HAVE_tcp_retransmit_skb_err
	if ((int)ctx[2])
		return 0;
#endif
	count_for(config, state ? state->owners : away.owners, COUNTER_RETRANSMITS);
	if (recovery)
		note_repetition(config, state, recovery, sk, tp, skb);
	else
		lost_for(config, state ? state->owners : away.owners, STAGE_TCP_RECOVERY);
	return 0;
}

static __always_inline void count_reset(struct sock *sk, u32 counter)
{
	struct config *config = get_config();

	if (config && sk && is_full(sk))
		count_for(config, get_owners(sk, config), counter);
}

/*
 * tcp_v4_send_reset(), tcp_v6_send_reset(), tcp_send_active_reset(); without a socket: no target's
 */
int on_tcp_send_reset(u64 *ctx)
{
	count_reset((struct sock *)ctx[0], COUNTER_RESETS_SENT);
	return 0;
}

/* tcp_reset(), net/ipv4/tcp_input.c */
int on_tcp_receive_reset(u64 *ctx)
{
	count_reset((struct sock *)ctx[0], COUNTER_RESETS_RECEIVED);
	return 0;
}

static __always_inline void set_own_window(struct config *config, struct socket_state *state,
					   u32 window)
{
	if (!window && !state->is_window_closed)
		count_for(config, state->owners, COUNTER_ZERO_WINDOWS_SENT);
	state->is_window_closed = !window;
}

/*
 * Our window closes with a segment that we send, and never before what it offered is used up:
 * tcp_select_window(), net/ipv4/tcp_output.c. (Lack of memory closes it at once, 6.4+: then a probe
 * of the peer's finds it closed.)
 */
#define WINDOW_LOW 16384 /* no window scale's step is larger */

/* A segment comes. While others wait before it, it is not known how much of the window is left. */
static __always_inline void note_own_window(struct config *config, struct socket_state *state,
					    struct tcp_sock *tp, struct incoming *incoming)
{
	u32 window, left;

	if (incoming->is_beside) {
		state->is_window_low = 1;
		return;
	}
	window = READ(tp, rcv_wnd);
	left = READ(tp, rcv_wup) + window - READ(tp, rcv_nxt);
	set_own_window(config, state, window);
	state->is_window_low = left < WINDOW_LOW + incoming->size;
}

/* It opens only when the application reads, so a read sees it closed. */
static __always_inline void note_read_window(struct config *config, struct socket_state *state,
					     struct tcp_sock *tp)
{
	if (state->is_window_low)
		set_own_window(config, state, READ(tp, rcv_wnd));
}

/* The peer's closes and opens with a segment of its own; the one that opens it sees it closed. */
static __always_inline void note_peer_window(struct config *config, struct socket_state *state,
					     struct incoming *incoming)
{
	if (incoming->is_closing && !state->is_peer_window_closed)
		count_for(config, state->owners, COUNTER_ZERO_WINDOWS_RECEIVED);
	state->is_peer_window_closed = incoming->is_closing;
}

/*
 * A peer acknowledges more than one full segment at once. The ACK of less it may delay, to send its
 * answer along, or until its timer expires: __tcp_ack_snd_check(), net/ipv4/tcp_input.c.
 */
enum ack { ACK_UNCERTAIN, ACK_AT_ONCE, ACK_BARE, ACK_WITH_DATA };

static __always_inline enum ack kind_of_ack(struct tcp_sock *tp, struct incoming *incoming)
{
	u32 bytes = incoming->ack_seq - READ(tp, snd_una), mss = READ(tp, mss_cache);

	if (incoming->is_beside)
		return ACK_UNCERTAIN;
	if (bytes >= 2 * mss)
		return ACK_AT_ONCE;
	if (bytes > mss || incoming->ack_seq != READ(tp, snd_nxt))
		return ACK_UNCERTAIN;
	return incoming->seq == incoming->end_seq ? ACK_BARE : ACK_WITH_DATA;
}

/*
 * The last round trip, tcp_rack_advance(), net/ipv4/tcp_recovery.c: of the segment sent last among
 * those that the ACK before acknowledged. Without one it is the handshake's, of which the smoothed one
 * begins; so is it for all time with a peer that knows no selective ACKs. A handshake that was no round
 * trip is none here. It is longer than one, so the kernel's least one is that of others as soon as it
 * differs; what grows above it until then has grown above the least as well.
 *
 * The least one of a connection is the kernel's, of the last five minutes (net.ipv4.tcp_min_rtt_wlen).
 * An ACK that may have been delayed does not raise it, tcp_update_rtt_min(), net/ipv4/tcp_input.c.
 */
struct round_trip {
	u64 us;
	u64 least_us;
	u64 is_at_once; /* its ACK was not delayed */
	u64 is_unknown;
};

/* Without a branch, as is_above() and for the same reason. */
static __always_inline struct round_trip last_round_trip(struct socket_state *state,
							 struct tcp_sock *tp, u64 srtt_us,
							 bool is_beside)
{
	u64 rtt_us = READ(tp, rack.rtt_us), is_known = 1 - is_equal(rtt_us, 0);
	struct round_trip last = { .us = srtt_us ^ ((srtt_us ^ rtt_us) & -is_known) };

	u64 least_us = READ(tp, rtt_min.s[0].v), is_untrue = state->is_rtt_untrue;

	last.is_unknown = is_untrue & (is_known ^ 1);
	last.least_us = last.us - at_least_0(last.us - least_us);
	last.is_at_once = is_known & is_equal(state->last_ack, ACK_AT_ONCE) &
			  is_equal(is_beside, 0);
	return last;
}

static __always_inline void add_to(struct slot_stats *slot, u32 counter, u64 amount)
{
	__sync_fetch_and_add(&slot->counters[counter], amount);
}

static __always_inline void record_round_trip(struct config *config, struct slot_stats *slot,
					      struct round_trip *last)
{
	if (last->is_unknown) {
		__sync_fetch_and_add(&slot->stages[STAGE_TCP_RTT].missing[UNMATCHED], 1);
		return;
	}
	record_checked(config, &slot->stages[STAGE_TCP_RTT], last->us * 1000);
	add_to(slot, COUNTER_RTT_LEAST_NS, last->least_us * 1000);
	if (!last->is_at_once)
		return;
	add_to(slot, COUNTER_RTT_GROWTH_SAMPLES, 1);
	add_to(slot, COUNTER_RTT_GROWTH_NS, (last->us - last->least_us) * 1000);
}

/* At each ACK of new data. */
static __always_inline void sample_rtt(struct config *config, struct socket_state *state,
				       struct tcp_sock *tp, struct incoming *incoming)
{
	u32 srtt_us = READ(tp, srtt_us) >> 3;
	owners_t owners = state->owners;
	struct round_trip last;
	int i;

	if (!srtt_us || !is_after(incoming->ack_seq, READ(tp, snd_una)))
		return;
	last = last_round_trip(state, tp, srtt_us, incoming->is_beside);
	state->last_ack = kind_of_ack(tp, incoming);
	if (!is_open(config))
		return;
#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, owners >>= OWNER_BITS) {
		struct slot_stats *slot = stats_of_first(config, owners);

		if (slot)
			record_round_trip(config, slot, &last);
	}
}
