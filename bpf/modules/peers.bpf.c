/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Peers of a target: how long their answers took, and how long requests wait for one now. Whether an
 * answer is missing, or not due yet, follows from these: latencyprobe/domain/patience.py.
 *
 * No packet runs this. It is a part of the reading of what is pending, see pending.bpf.c.
 */

/* What a socket that is visited shows of its peer. */
struct found_turn {
	u64 is_known;  /* the rest says something of the peer */
	u64 is_server; /* then the peer is all clients of the port together */
	u64 since;     /* when the request that waits was read, or sent; 0: not known */
	u64 is_waiting;
	u64 age_ns;   /* 0: nothing follows from it */
	u64 is_late;  /* by the connection's own past */
	u64 is_first; /* it waits for the first answer of its connection */
	u64 answers;
	u64 slowest_ns;	    /* of its answers */
	u64 connect_age_ns; /* of a connect without an answer, from 1 s on */
	u64 resent_age_ns;  /* of retransmits without an ACK, likewise */
};

#ifdef MODULE_TCP

struct waited_peer_key {
	u16 slot;
	u8 role;
	u8 protocol;
	u16 port;
	u16 reserved;
	u32 address[4];
};

struct waits {
	u64 count;
	u64 oldest_ns;
	u64 waiting_ns;
};

struct peer {
	u64 answered; /* sockets that had an answer */
	u64 answers;  /* of all of them, at most MOST_ANSWERS each */
	u64 slowest_ns;
	struct waits waiting;
	struct waits late;  /* of those, by the past of their own connection */
	struct waits first; /* of those, for the first answer of their connection */
	struct waits connects;
	struct waits resent;
	/* The same with an age of at least 1 s, 2 s, 4 s and so on. */
	u64 first_counts[PATIENCE_STEPS];
	u64 first_waiting_ns[PATIENCE_STEPS];
};
BYTES_OF(peer);

/*
 * Of one reading. The agent deletes all that it has read. Each slot has its rooms: one for peers that are
 * known by what they acknowledge or answer, or were connected to, and a small one for others.
 */
BPF_TABLE("hash", struct waited_peer_key, struct peer_bytes, peers, MAX_PEERS + MAX_UNHEARD_PEERS);
BPF_ARRAY(empty_peers, struct peer_bytes, 1);

/* The age from which an answer is missing: see patience_ns() in latencyprobe/domain/patience.py. */
static __always_inline u64 patience_ns(u64 slowest_ns)
{
	u64 is_quick = is_below_0(slowest_ns - HELD_ANSWER_NS);
	u64 least_ns = choose(is_quick, LEAST_PATIENCE_NS, HELD_PATIENCE_NS);
	u64 patience_ns = PATIENCE_FACTOR * slowest_ns;

	return choose(is_below_0(patience_ns - least_ns), least_ns, patience_ns);
}

/*
 * The peer's kernel has not acknowledged the request's first byte: no process there can be at work on it.
 * A server has its request.
 */
static __always_inline u64 is_unacknowledged(volatile struct found_turn *turn, struct turns *turns,
					     struct tcp_sock *tp)
{
	u64 is_before = is_below_0((s64)(s32)(READ(tp, snd_una) - turns->request_seq - 1));

	return is_before & ~turn->is_server;
}

/*
 * With time slices an answer may have come, or gone, unseen. Then the last data is not that of the
 * side that asks: tcp_event_data_recv(), net/ipv4/tcp_input.c, tcp_event_data_sent(),
 * net/ipv4/tcp_output.c. (Within one tick it is not known.)
 */
static __always_inline u64 is_answer_unseen(volatile struct found_turn *turn, struct config *config,
					    struct tcp_sock *tp)
{
	s64 later = (s32)(READ(tp, lsndtime) - READ(tp, inet_conn.icsk_ack.lrcvtime));
	u64 is_asked_last = choose(turn->is_server, is_below_0(later), is_below_0(-later));

	return (is_asked_last ^ 1) & (is_equal(config->slice, 0) ^ 1);
}

/*
 * `age_ns`: of the request that waits, if one does. Turns that are no requests (a multiplex) show
 * nothing, nor does a request that may be another one's.
 * `quiet_ns`: since the last transmission. A client that writes on waits since its last bytes.
 */
static __always_inline void find_turn(volatile struct found_turn *turn, struct turns *turns,
				      struct sock *sk, struct tcp_sock *tp, u64 age_ns,
				      u64 quiet_ns)
{
	struct config *config = get_config();
	u64 past = turns->past, answers = past >> ANSWER_BITS;
	u64 slowest_ns = (past & LONGEST_ANSWER) << ANSWER_SHIFT;
	u64 is_judged = turn->is_waiting & (is_equal(turns->doubt, IN_DOUBT) ^ 1);
	u64 is_late, is_answered = is_equal(answers, 0) ^ 1;
	u64 writes_on = is_below_0((u64)IN_DOUBT - turns->doubt) & ~turn->is_server;
	u64 unheard_ns = choose(writes_on, quiet_ns, age_ns), is_unreceived;

	if (!config || is_multiplex(turns))
		return;
	is_unreceived = is_unacknowledged(turn, turns, tp);
	is_judged &= is_answer_unseen(turn, config, tp) ^ 1;
	is_late = is_below_0(patience_ns(slowest_ns) - unheard_ns) &
		  is_below_0(ANSWERS_OF_A_PAST - 1 - answers);
	is_late |= is_below_0(LEAST_PATIENCE_NS - age_ns) & is_unreceived;
	is_late &= is_judged;
	turn->answers = answers;
	turn->slowest_ns = choose(is_answered, slowest_ns, 0);
	turn->age_ns = choose(is_judged, choose(is_unreceived, age_ns, unheard_ns), 0);
	turn->is_late = is_late;
	turn->is_first = is_judged & (is_below_0(0 - age_ns)) & (is_late ^ 1) & (is_answered ^ 1) &
			 (writes_on ^ 1);
	turn->is_known = is_answered | is_below_0(0 - turn->age_ns);
}

static __always_inline void add_wait(volatile struct waits *waits, u64 is_one, u64 age_ns)
{
	u64 oldest_ns = waits->oldest_ns, ns = choose(is_one, age_ns, 0);

	waits->count += is_one;
	waits->waiting_ns += ns;
	waits->oldest_ns = choose(is_below_0(oldest_ns - ns), ns, oldest_ns);
}

/* The same of a wait with this age; 0: it is none. */
static __always_inline void add_age(volatile struct waits *waits, u64 age_ns)
{
	add_wait(waits, is_below_0(0 - age_ns), age_ns);
}

static __always_inline void add_to_peer(volatile struct peer *peer,
					volatile struct found_turn *turn)
{
	u64 age_ns = turn->age_ns, is_first = turn->is_first, answers = turn->answers;
	u64 slowest_ns = turn->slowest_ns, most_ns = peer->slowest_ns, is_as_old, step;

	peer->answered += !is_equal(answers, 0);
	peer->answers += answers;
	peer->slowest_ns = choose(is_below_0(most_ns - slowest_ns), slowest_ns, most_ns);
	add_wait(&peer->waiting, is_below_0(0 - age_ns), age_ns);
	add_wait(&peer->late, turn->is_late, age_ns);
	add_wait(&peer->first, is_first, age_ns);
	add_age(&peer->connects, turn->connect_age_ns);
	add_age(&peer->resent, turn->resent_age_ns);
#pragma unroll
	for (step = 0; step < PATIENCE_STEPS; step++) {
		is_as_old = is_first & !is_below_0(age_ns - (LEAST_PATIENCE_NS << step));
		peer->first_counts[step] += is_as_old;
		peer->first_waiting_ns[step] += choose(is_as_old, age_ns, 0);
	}
}

/* NULL: the slot has no room for it. */
static __always_inline struct peer *get_peer(struct waited_peer_key *key, u32 room)
{
	struct peer *peer = (struct peer *)peers.lookup(key);
	struct peer_bytes *empty;
	u32 zero = 0;

	if (peer)
		return peer;
	if (!take_room(room, key->slot))
		return 0;
	empty = empty_peers.lookup(&zero);
	if (!empty)
		return 0;
	peers.update(key, empty);
	return (struct peer *)peers.lookup(key);
}

/* Of a server all clients together. */
static __always_inline void find_peer(struct waited_peer_key *key, struct sock *sk, u64 is_server)
{
	key->protocol = PROTOCOL_TCP;
	if (is_server) {
		key->role = ROLE_SERVER;
		key->port = READ(sk, __sk_common.skc_num);
		return;
	}
	key->role = ROLE_CLIENT;
	key->port = bpf_ntohs(READ(sk, __sk_common.skc_dport));
	if (READ(sk, __sk_common.skc_family) == AF_INET) {
		key->address[2] = bpf_htonl(0xffff);
		key->address[3] = READ(sk, __sk_common.skc_daddr);
		return;
	}
#ifdef HAVE_sock_common_skc_v6_daddr
	bpf_probe_read_kernel(key->address, sizeof(key->address), &sk->__sk_common.skc_v6_daddr);
#endif
}

#endif
