/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is pending: waiting that has not ended, of the targets' open sockets, when the agent reads.
 *
 * No packet runs these programs. They take no lock, so other CPUs may use a socket at the same time:
 * each loop has a bound of its own, and each age is between 0 and LONGEST_PENDING_NS. A segment that
 * is read at that very moment may be counted or not. For what an application has closed no process waits.
 */

struct pending {
	u64 count;
	u64 sockets;
	u64 bytes;
	u64 oldest_ns;	/* 0: no age is known */
	u64 waiting_ns; /* the sum of all known ages */
};

struct slot_pending {
	struct pending kinds[NR_PENDING];
};

/* By slot. The agent clears it before a reading, and one reading runs at a time. */
BYTES_OF(slot_pending);
BPF_F_TABLE("array", u32, struct slot_pending_bytes, pending_of_slots, MAX_SLOTS, BPF_F_MMAPABLE);

/*
 * One reading. What is found of a socket is in a map, where it is unknown to the verifier: elsewhere
 * it would follow each value through the loops.
 */
struct pending_reading {
	u64 number;	 /* by the agent: another one for each reading, never 0 */
	owners_t owners; /* of the socket that is visited now */
	struct slot_pending found;
	u64 first_ns; /* of the first reading */
	u64 first_tick;
	struct found_turn turn;
};
BYTES_OF(pending_reading);
BPF_F_TABLE("array", u32, struct pending_reading_bytes, pending_readings, 1, BPF_F_MMAPABLE);

#if defined(WITH_ON_SOCKET_STATE) || defined(WITH_ON_PENDING_FILE)

#define IS_IN(state, states) ((1U << (state)) & (states))
#define OPEN (1U << TCP_ESTABLISHED | 1U << TCP_CLOSE_WAIT)
/* Our FIN is in the send queue, or was sent. */
#define ENDING (1U << TCP_FIN_WAIT1 | 1U << TCP_CLOSING | 1U << TCP_LAST_ACK)
#define READABLE (OPEN | 1U << TCP_FIN_WAIT1 | 1U << TCP_FIN_WAIT2)

static __always_inline u64 is_later(u32 one, u32 other)
{
	return is_below_0((s64)(s32)(other - one));
}

/* 0 if `since` is 0, or later than `now`. */
static __always_inline u64 age_of(u64 since, u64 now)
{
	u64 age = now - since;

	age = choose(is_below_0(age) | is_below_0(since - 1), 0, age);
	return choose(is_below_0(LONGEST_PENDING_NS - age), LONGEST_PENDING_NS, age);
}

/* So many ticks have to pass before their length is known to 2 %. */
#define TICKS_TO_MEASURE 64

/*
 * A time of the kernel's clock of ticks, in 32 bits (tcp_jiffies32, include/net/tcp.h), by ours; 0: the
 * length of a tick is not known yet. It is measured between readings: no program can read CONFIG_HZ.
 */
static __always_inline u64 time_of_tick(volatile struct pending_reading *reading, u32 stamp,
					u64 now)
{
	u64 tick = bpf_jiffies64(), ticks = tick - reading->first_tick, ago_ns;
	u32 ago = tick - stamp;

	if (ticks < TICKS_TO_MEASURE)
		return 0;
	if ((s32)ago < 0 && ago + TICKS_TO_MEASURE < TICKS_TO_MEASURE)
		ago = 0; /* another CPU's tick */
	ago_ns = (u64)ago * ((now - reading->first_ns) / ticks);
	return ago_ns < now ? now - ago_ns : 0;
}

static __always_inline void begin_to_measure_ticks(volatile struct pending_reading *reading)
{
	if (reading->first_ns)
		return;
	reading->first_ns = bpf_ktime_get_ns();
	reading->first_tick = bpf_jiffies64();
}

/* One more thing that waits, if `is_pending` is 1. Without `since` its age is not known. */
static __always_inline void add_if(u64 is_pending, volatile struct pending *pending, u64 since,
				   u64 now)
{
	u64 age = choose(is_pending, age_of(since, now), 0), oldest_ns = pending->oldest_ns;

	pending->count += is_pending;
	pending->waiting_ns += age;
	pending->oldest_ns = choose(is_below_0(oldest_ns - age), age, oldest_ns);
}

static __always_inline void add_one(volatile struct pending *pending, u64 since, u64 now)
{
	add_if(1, pending, since, now);
}

static __always_inline void add_socket(volatile struct pending *pending, u32 bytes)
{
	pending->sockets++;
	pending->bytes += bytes;
}

/*
 * Have a bound tested in each round. Else the compiler counts from another number up to the lesser
 * bound, and the verifier finds no end.
 */
#define keep_in_loop(bound) asm volatile("" : "+r"(bound))

#ifdef MODULE_RX

/* Return the end of the last of these unread segments; `unread` if there is none. */
static __always_inline u32 add_segments(volatile struct pending *pending,
					volatile struct socket_queue *queue,
					struct segment *segments, u32 size, u32 unread, u32 end,
					u64 now)
{
	u32 head = queue->head, waiting = queue->tail - head, end_seq, i;
	volatile struct segment *segment;
	u64 is_unread;

	for (i = 0; i < size; i++) {
		keep_in_loop(waiting);
		if (i >= waiting)
			break;
		segment = &segments[(head + i) & (size - 1)];
		end_seq = segment->end_seq;
		/* else it was read unseen, or came at this moment */
		is_unread = is_later(end_seq, unread) & ~is_later(end_seq, end);
		unread = choose(is_unread, end_seq, unread);
		add_if(is_unread, pending, segment->queued_ns, now);
	}
	return unread;
}

/* The end of the data that came. */
static __always_inline u32 received_end(struct sock *sk, struct tcp_sock *tp, u32 unread)
{
	u32 end = READ(tp, rcv_nxt);

	return unread != end && READ(sk, sk_shutdown) & RCV_SHUTDOWN ? end - 1 : end; /* a FIN */
}

/* All that is unread came at this time or before: tcp_event_data_recv(), net/ipv4/tcp_input.c. */
static __always_inline u64 last_received_ns(volatile struct pending_reading *reading,
					    struct tcp_sock *tp, u64 now)
{
	return time_of_tick(reading, READ(tp, inet_conn.icsk_ack.lrcvtime), now);
}

/*
 * A server has closed, and its last bytes may be a goodbye: close_notify of TLS (24 to 53 bytes), or what a
 * database says of an idle session. A pool finds them when it next uses the connection.
 */
#define LONGEST_GOODBYE 256

/* Without a branch: the verifier would follow the loop over the segments once for each. */
static __always_inline u64 is_goodbye(struct socket_state *state, struct sock *sk,
				      struct tcp_sock *tp, u32 tcp_state, u64 unread_bytes)
{
	u64 is_short = is_below_0(unread_bytes - LONGEST_GOODBYE - 1);
	u64 is_of_server = is_equal(READ(sk, sk_max_ack_backlog), 0);
	u64 is_after_others = is_below_0(unread_bytes - READ(tp, bytes_received));
	u64 request_ns = 0;

#ifdef MODULE_TCP
	request_ns = state->turns.request_ns; /* else they are an answer */
#endif
	return is_equal(tcp_state, TCP_CLOSE_WAIT) & is_short & is_of_server & is_after_others &
	       is_equal(request_ns, 0);
}

/*
 * Data in the socket that the application has not read. Segments that are not known (not sampled, more
 * than there is room for, or from before we watched) count as one at the end, of the least age.
 */
static __always_inline void find_unread(struct pending_reading *reading, struct socket_state *state,
					struct sock *sk, struct tcp_sock *tp, u32 tcp_state,
					u64 now)
{
	volatile struct pending *pending = &reading->found.kinds[PENDING_UNREAD_SEGMENTS];
	u32 unread = READ(tp, copied_seq), end = received_end(sk, tp, unread), known = unread;
	struct segment_ring *ring = 0;
	struct socket_queue *queue;

	if (!(is_later(end, unread) & ~is_goodbye(state, sk, tp, tcp_state, end - unread)))
		return;
	queue = look_up_socket_queue(sk);
	if (queue && queue->has_segment_ring)
		ring = look_up_segment_ring(sk);
	if (ring)
		known = add_segments(pending, queue, ring->segments, SEGMENTS, unread, end, now);
	else if (queue)
		known = add_segments(pending, queue, queue->segments, FEW_SEGMENTS, unread, end,
				     now);
	if (known != end)
		add_one(pending, last_received_ns(reading, tp, now), now);
	add_socket(pending, end - unread);
}

#endif

#ifdef MODULE_TX

static __always_inline void add_writes(volatile struct pending *pending,
				       volatile struct socket_queue *queue, struct handoff *handed,
				       u32 size, u32 sent, u32 end, u64 now)
{
	u32 head = queue->handed_head, waiting = queue->handed_tail - head, next_seq, i;
	volatile struct handoff *handoff, *next;
	u64 is_unsent;

	for (i = 0; i < size; i++) {
		keep_in_loop(waiting);
		if (i >= waiting)
			break;
		handoff = &handed[(head + i) & (size - 1)];
		next = &handed[(head + i + 1) & (size - 1)];
		/* its bytes end where the next one's begin */
		next_seq = choose(is_later(waiting, i + 1), next->seq, end);
		is_unsent = is_later(next_seq, sent) & ~is_later(next_seq, end);
		add_if(is_unsent, pending, handoff->handed_ns, now);
	}
}

/* Bytes that the application handed to TCP, and that were not sent yet. */
static __always_inline void find_unsent(volatile struct pending *pending, struct sock *sk,
					struct tcp_sock *tp, u32 state, u64 now)
{
	u32 end = READ(tp, write_seq), sent = READ(tp, snd_nxt);
	struct handoff_ring *ring = 0;
	struct socket_queue *queue;
	u64 before = pending->count;

	if (IS_IN(state, ENDING))
		end--; /* our FIN */
	if (!is_after(end, sent))
		return;
	queue = look_up_socket_queue(sk);
	if (queue && queue->has_handoff_ring)
		ring = look_up_handoff_ring(sk);
	if (ring)
		add_writes(pending, queue, ring->handed, HANDOFFS, sent, end, now);
	else if (queue)
		add_writes(pending, queue, queue->handed, FEW_HANDOFFS, sent, end, now);
	if (pending->count == before) /* handed over before we watched */
		add_one(pending, 0, now);
	add_socket(pending, end - sent);
}

#endif

#ifdef MODULE_TCP

/* A time of TCP's own clock, in 32 bits, by ours; 0: there is none. tcp_time_stamp_ts(), net/tcp.h */
static __always_inline u64 time_of_stamp(struct tcp_sock *tp, u32 stamp, u64 now)
{
	u64 unit_ns = 1000000;
	s32 age;

#ifdef HAVE_tcp_sock_tcp_usec_ts /* 6.7+: microseconds for sockets with that option of routes */
	if (READ(tp, tcp_usec_ts))
		unit_ns = 1000;
#endif
	age = (u32)(now / unit_ns) - stamp;
	return stamp && age >= 0 ? now - (u64)age * unit_ns : 0;
}

/* 0 for what is younger: most of that ends by itself. */
static __always_inline u64 of_a_second(u64 age_ns)
{
	return choose(is_below_0(age_ns - LEAST_PATIENCE_NS), 0, age_ns);
}

/*
 * The retransmission timer has expired, and no ACK came since: see note_timeout(). The bytes wait since
 * their first transmission. If that was before we watched, the socket has the time of the first
 * retransmission: tcp_retransmit_skb(), net/ipv4/tcp_output.c.
 */
static __always_inline void find_retransmits(struct pending_reading *reading,
					     struct socket_state *state, struct sock *sk,
					     struct tcp_sock *tp, u64 now)
{
	volatile struct pending *pending = reading->found.kinds;
	volatile struct found_turn *turn = &reading->turn;
	u32 unacknowledged = READ(tp, snd_una), sent = READ(tp, snd_nxt), is_dropped_here = 0;
	struct recovery *recovery;
	u64 since;

	if (!READ(tp, inet_conn.icsk_retransmits) || !is_after(sent, unacknowledged))
		return;
	recovery = state->recovering == IN_RECOVERY ? look_up_recovery(sk) : 0;
	if (recovery) {
		since = recovery->begin_ns;
		is_dropped_here = is_equal(recovery->drops, 0) ^ 1;
	} else {
		since = time_of_stamp(tp, READ(tp, retrans_stamp), now);
	}
	_Static_assert(PENDING_UNACKNOWLEDGED_DROPS == PENDING_UNACKNOWLEDGED_RETRANSMITS + 1,
		       "the kinds of retransmits are neighbours");
	pending += PENDING_UNACKNOWLEDGED_RETRANSMITS + (is_dropped_here & 1);
	add_one(pending, since, now);
	add_socket(pending, sent - unacknowledged);
	turn->resent_age_ns = of_a_second(age_of(since, now));
}

/* When the request that waits for its answer was read, or sent; 0: it is not known, or none waits. */
static __always_inline u64 find_waiting_turn(volatile struct found_turn *turn, struct turns *turns,
					     struct sock *sk, struct tcp_sock *tp, u32 tcp_state)
{
	u64 request_ns = turns->request_ns;

	if (turns->role == ROLE_SERVER) {
		turn->is_server = 1;
		turn->is_waiting = turns->is_known && is_after(read_end(sk, tp), turns->turn_seq);
		return is_read_seen(sk, turns, READ(tp, copied_seq)) ? turns->read_ns : 0;
	}
	turn->is_waiting = request_ns && tcp_state == TCP_ESTABLISHED;
	return request_ns;
}

static __always_inline void add_turns(volatile struct pending *pending, u64 is_one, u64 since,
				      u64 now)
{
	add_if(is_one, pending, since, now);
	pending->sockets += is_one;
}

/* A request that has no byte of its answer: of a client, or of a server that has read it. */
static __always_inline void find_request(struct pending_reading *reading,
					 struct socket_state *state, struct sock *sk,
					 struct tcp_sock *tp, u32 tcp_state, u64 now)
{
	volatile struct pending *kinds = reading->found.kinds;
	volatile struct found_turn *turn = &reading->turn;
	struct turns *turns = &state->turns;
	u64 is_server, is_waiting, is_late, late_since;

	if (!IS_IN(tcp_state, OPEN))
		return;
	turn->since = find_waiting_turn(turn, turns, sk, tp, tcp_state);
	find_turn(turn, turns, sk, tp, age_of(turn->since, now),
		  age_of(READ(tp, tcp_wstamp_ns), now));
	/* read again: what the verifier does not know makes no paths */
	is_server = turn->is_server, is_waiting = turn->is_waiting, is_late = turn->is_late;
	late_since = now - turn->age_ns;
	add_turns(&kinds[PENDING_UNANSWERED_REQUESTS], is_waiting & ~is_server, turn->since, now);
	add_turns(&kinds[PENDING_REQUESTS_IN_SERVICE], is_waiting & is_server, turn->since, now);
	add_turns(&kinds[PENDING_MISSING_ANSWERS], is_late & ~is_server, late_since, now);
	add_turns(&kinds[PENDING_STUCK_REQUESTS], is_late & is_server, late_since, now);
}

/*
 * Report what the socket shows of its peer. Anyone can make peers that are known by what they do not
 * acknowledge alone, so there is room for a few: the others' places are for peers that were connected to.
 */
static __always_inline void report_peer(struct pending_reading *reading, struct socket_state *state,
					struct sock *sk)
{
	owners_t owners = *(volatile owners_t *)&reading->owners;
	volatile struct found_turn *turn = &reading->turn;
	struct waited_peer_key key = {};
	struct peer *peer;
	u32 room;

	if (!(turn->is_known | turn->connect_age_ns | turn->resent_age_ns))
		return;
	find_peer(&key, sk, role_of(sk, &state->turns) == ROLE_SERVER);
	room = turn->is_known ? ROOM_PEERS : ROOM_UNHEARD_PEERS;
	for (; owners; owners >>= OWNER_BITS) {
		key.slot = first_slot(owners);
		peer = get_peer(&key, room);
		if (peer)
			add_to_peer(peer, turn);
	}
}

static __always_inline void find_connect(struct pending_reading *reading,
					 struct socket_state *state, u32 tcp_state, u64 now)
{
	volatile struct pending *pending = &reading->found.kinds[PENDING_UNANSWERED_CONNECTS];
	volatile struct found_turn *turn = &reading->turn;
	u64 connect_ns = state->connect_ns;

	if (tcp_state != TCP_SYN_SENT || !connect_ns)
		return;
	add_one(pending, connect_ns, now);
	add_socket(pending, 0);
	turn->connect_age_ns = of_a_second(age_of(connect_ns, now));
}

/* A connection that accept() has not returned has no socket in the sense of the system calls. */
static __always_inline bool is_in_accept_queue(struct socket_state *state, struct sock *sk,
					       u32 tcp_state)
{
	return IS_IN(tcp_state, OPEN) && state->established_ns && !READ(sk, sk_socket);
}

#ifdef MODULE_RX

/* The same of a connection in an accept queue: nothing was read, and one age is enough. */
static __always_inline void find_all_unread(struct pending_reading *reading, struct sock *sk,
					    struct tcp_sock *tp, u64 now)
{
	volatile struct pending *pending = &reading->found.kinds[PENDING_UNREAD_SEGMENTS];
	u32 unread = READ(tp, copied_seq), end = received_end(sk, tp, unread), known = 0;
	volatile struct socket_queue *queue = look_up_socket_queue(sk);
	volatile struct segment *first;

	if (!is_after(end, unread))
		return;
	first = queue ? first_segment(sk, queue) : 0;
	if (first)
		known = queue->tail - queue->head;
	if (known && known <= SEGMENTS) {
		pending->count += known - 1;
		add_one(pending, first->queued_ns, now);
	} else {
		add_one(pending, last_received_ns(reading, tp, now), now);
	}
	add_socket(pending, end - unread);
}

#endif

/* A connection in an accept queue, with the data that has come since then. */
static __always_inline void find_unaccepted(struct pending_reading *reading, u64 established_ns,
					    bool with_data, struct sock *sk, struct tcp_sock *tp,
					    u64 now)
{
	volatile struct pending *pending = &reading->found.kinds[PENDING_UNACCEPTED_CONNECTIONS];

	add_one(pending, established_ns, now);
	add_socket(pending, 0);
#ifdef MODULE_RX
	if (with_data)
		find_all_unread(reading, sk, tp, now);
#endif
}

/* The oldest connections of an accept queue have ages: inet_csk_accept() takes them first. */
#define FIRST_UNACCEPTED 32

/*
 * The accept queue of a listener. Connections from before we watched were established when TCP noted that
 * nothing was sent yet: tcp_create_openreq_child(), net/ipv4/tcp_minisocks.c. `with_states`: those that
 * have a state, too. Else they are visited by themselves, and only their place in the queue may be unknown.
 */
static __always_inline void find_accept_queue(struct pending_reading *reading, struct sock *sk,
					      struct tcp_sock *tp, bool with_states, u64 now)
{
	struct request_sock *request = READ(tp, inet_conn.icsk_accept_queue.rskq_accept_head);
	struct socket_state *state;
	struct tcp_sock *child_tp;
	u64 established_ns;
	struct sock *child;
	u32 i;

	for (i = 0; i < FIRST_UNACCEPTED; i++) {
		if (!request)
			break;
		child = READ(request, sk);
		request = READ(request, dl_next);
		if (!child)
			break;
		child_tp = get_tcp_sock(child);
		if (!child_tp || !IS_IN(READ(child, __sk_common.skc_state), OPEN))
			continue;
		state = find_state(child);
		established_ns = state ? state->established_ns : 0;
		if (established_ns && !with_states)
			continue;
		if (!established_ns)
			established_ns = time_of_tick(reading, READ(child_tp, lsndtime), now);
		find_unaccepted(reading, established_ns, with_states || !state, child, child_tp,
				now);
	}
}

#endif

/* All that is pending in a socket that an application has open. */
static __always_inline void find_pending(struct pending_reading *reading,
					 struct socket_state *state, struct sock *sk,
					 struct tcp_sock *tp, u32 tcp_state, u64 now)
{
	volatile struct slot_pending *found = &reading->found;

#ifdef MODULE_RX
	if (IS_IN(tcp_state, READABLE))
		find_unread(reading, state, sk, tp, tcp_state, now);
#endif
#ifdef MODULE_TX
	if (IS_IN(tcp_state, OPEN | ENDING))
		find_unsent(&found->kinds[PENDING_UNSENT_WRITES], sk, tp, tcp_state, now);
#endif
#ifdef MODULE_TCP
	find_request(reading, state, sk, tp, tcp_state, now);
	find_connect(reading, state, tcp_state, now);
	if (IS_IN(tcp_state, OPEN | ENDING))
		find_retransmits(reading, state, sk, tp, now);
	report_peer(reading, state, sk);
#endif
}

#ifdef WITH_QUERIES

/* Queries to peers that reply. */
static __always_inline void find_queries(volatile struct pending *pending,
					 struct socket_queue *queue, u64 now)
{
	volatile struct query *query;
	u64 asked_ns, is_pending;
	u32 i;

#pragma unroll
	for (i = 0; i < FEW_HANDOFFS; i++) {
		query = &queue->queries[i];
		asked_ns = query->asked_ns;
		is_pending = is_below_0(-asked_ns) & is_below_0(-(u64)query->is_known) &
			     is_below_0(now - asked_ns - GIVEN_UP_NS);
		add_if(is_pending, pending, asked_ns, now);
	}
	if (pending->count)
		add_socket(pending, 0);
}

/* Of a socket's unread datagrams, the oldest have ages. */
#define AGED_DATAGRAMS FEW_SEGMENTS

/* The ages of datagrams, as far as they are known: see queue_datagram(). */
static __always_inline void add_datagrams(volatile struct pending *pending,
					  volatile struct socket_queue *queue,
					  struct segment *segments, u32 size, u32 unread, u64 now)
{
	u32 known = choose(is_below_0((u64)size - unread), size, unread);
	u32 first = queue->tail - known, i;
	volatile struct segment *segment;
	u64 queued_ns, is_known;

	for (i = 0; i < AGED_DATAGRAMS; i++) {
		keep_in_loop(known);
		if (i >= known)
			break;
		segment = &segments[(first + i) & (size - 1)];
		queued_ns = segment->queued_ns;
		is_known = is_equal(segment->seq, first + i) & is_below_0(PLACE_PIECES - queued_ns);
		add_if(is_known, pending, queued_ns, now);
	}
}

/* A reader moves all datagrams to a queue of its own, first_packet_length(), net/ipv4/udp.c. */
static __always_inline struct sk_buff *oldest_queued(struct sock *sk)
{
	struct sk_buff_head *of_reader = &((struct udp_sock *)sk)->reader_queue;
	u64 is_there = is_below_0(-(u64)PEEK(of_reader, qlen));
	u64 first = (u64)PEEK(of_reader, next), next = (u64)PEEK(&sk->sk_receive_queue, next);

	return (struct sk_buff *)choose(is_there, first, next);
}

/*
 * Datagrams that a server has not read. They have ages if it has read any since we watched, since there
 * are sockets that no process reads. For the same reason these are left out:
 *
 *   - Replies that came too late for their client. The kernel chooses the port of most clients. So a
 *     server's socket is one that was bound to a port, and that received before it sent.
 *   - A multicast or broadcast, which comes to each socket that once joined.
 */
static __always_inline void find_datagrams(volatile struct pending *pending, struct sock *sk,
					   struct socket_queue *queue, u64 now)
{
	u32 unread = remaining_datagrams(sk), aged;
	struct segment_ring *ring = 0;

	if (!unread || !(READ(sk, sk_userlocks) & SOCK_BINDPORT_LOCK) ||
	    is_for_many(oldest_queued(sk)))
		return;
	if (queue->has_segment_ring)
		ring = look_up_segment_ring(sk);
	aged = choose(is_below_0(-(u64)queue->head), unread, 0);
	if (ring)
		add_datagrams(pending, queue, ring->segments, SEGMENTS, aged, now);
	else
		add_datagrams(pending, queue, queue->segments, FEW_SEGMENTS, aged, now);
	if (aged && !pending->oldest_ns) /* they may have come at this moment */
		return;
	pending->count = unread;
	add_socket(pending, 0);
}

#endif

static __always_inline void add_pending(volatile struct slot_pending *of_slot,
					volatile struct slot_pending *found)
{
	volatile struct pending *to = of_slot->kinds, *from = found->kinds;
	u64 oldest_ns;
	u32 kind;

#pragma unroll
	for (kind = 0; kind < NR_PENDING; kind++, to++, from++) {
		to->count += from->count;
		to->sockets += from->sockets;
		to->bytes += from->bytes;
		to->waiting_ns += from->waiting_ns;
		oldest_ns = to->oldest_ns;
		to->oldest_ns = choose(is_below_0(oldest_ns - from->oldest_ns), from->oldest_ns,
				       oldest_ns);
	}
}

/*
 * Add what was found of the socket that was visited last. At the beginning of the next visit, since the
 * verifier would do it for each path through the loops. The last visit is of no socket.
 */
static __always_inline void report_last_socket(struct pending_reading *reading)
{
	owners_t owners = *(volatile owners_t *)&reading->owners;
	struct slot_pending *of_slot;
	u32 slot;

	for (; owners; owners >>= OWNER_BITS) {
		slot = first_slot(owners);
		of_slot = (struct slot_pending *)pending_of_slots.lookup(&slot);
		if (of_slot)
			add_pending(of_slot, &reading->found);
	}
	*(volatile owners_t *)&reading->owners = 0;
}

/* Begin with a socket of these owners; 0: it has none. */
static __always_inline owners_t begin_socket(struct pending_reading *reading, owners_t owners)
{
	__builtin_memset(&reading->found, 0, sizeof(reading->found));
	__builtin_memset(&reading->turn, 0, sizeof(reading->turn));
	*(volatile owners_t *)&reading->owners = owners;
	return *(volatile owners_t *)&reading->owners;
}

/* All that is pending in a socket of UDP. In time slices datagrams may come and go unseen. */
static __always_inline void find_pending_datagrams(struct pending_reading *reading,
						   struct config *config, struct sock *sk)
{
#ifdef WITH_QUERIES
	volatile struct pending *kinds = reading->found.kinds;
	struct socket_queue *queue = look_up_socket_queue(sk);
	u64 now = bpf_ktime_get_ns();

	if (!queue || config->slice)
		return;
	if (queue->dialogue.role == ASKS)
		find_queries(&kinds[PENDING_UNANSWERED_QUERIES], queue, now);
	else if (queue->dialogue.role == ANSWERS)
		find_datagrams(&kinds[PENDING_UNREAD_SEGMENTS], sk, queue, now);
#endif
}

/*
 * The owners as they are now. The state stays as it is: without the socket's lock a program on
 * another CPU might see half of a change. `state`: NULL if it has none.
 */
static __always_inline owners_t present_owners(struct config *config, struct socket_state *state,
					       struct sock *sk)
{
	struct netns_entry *netns;
	struct net *net;

	if (state && state->generation == config->generation &&
	    state->port_pair == READ(sk, __sk_common.skc_portpair))
		return state->owners;
	net = PEEK(sk, __sk_common.skc_net.net);
	netns = find_netns(config, PEEK(net, ns.inum));
	return netns && netns->flags & NETNS_WATCHED ? look_up_owners(config, sk, netns) : 0;
}

static __always_inline struct pending_reading *get_pending_reading(void)
{
	u32 zero = 0;

	return (struct pending_reading *)pending_readings.lookup(&zero);
}

#endif

#ifdef WITH_ON_SOCKET_STATE

/*
 * bpf_iter__bpf_sk_storage_map, net/core/bpf_sk_storage.c, 5.9+: each socket with a state, so those of
 * targets alone.
 */
int on_socket_state(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[2];
	struct pending_reading *reading = get_pending_reading();
	struct config *config = get_config();
	struct socket_state *state;
	u32 tcp_state, protocol;
	struct tcp_sock *tp;
	u64 now;

	if (!config || !reading)
		return 0;
	report_last_socket(reading);
	begin_to_measure_ticks(reading);
	if (!sk)
		return 0;
	protocol = protocol_of(sk);
	if (!protocol)
		return 0;
	state = look_up_socket_state(sk);
	if (!state || READ(sk, __sk_common.skc_flags) & (1UL << SOCK_DEAD))
		return 0;
	if (!begin_socket(reading, present_owners(config, state, sk)))
		return 0;
	if (protocol == PROTOCOL_UDP) {
		find_pending_datagrams(reading, config, sk);
		return 0;
	}
	tp = get_tcp_sock(sk);
	if (!tp)
		return 0;
	tcp_state = READ(sk, __sk_common.skc_state);
	now = bpf_ktime_get_ns();
#ifdef MODULE_TCP
	if (is_in_accept_queue(state, sk, tcp_state))
		find_unaccepted(reading, state->established_ns, true, sk, tp, now);
	else if (tcp_state == TCP_LISTEN)
		find_accept_queue(reading, sk, tp, false, now);
	else
#endif
		find_pending(reading, state, sk, tp, tcp_state, now);
	return 0;
}

#endif

#ifdef WITH_ON_PENDING_FILE

/* `owners`, and those of the process that has the socket open, unless it has claimed it. */
static __always_inline owners_t add_holder(struct config *config, struct socket_state *state,
					   owners_t owners, struct task_struct *task,
					   struct sock *sk, u32 protocol)
{
	u32 tgid = READ(task, tgid);
	owners_t *others = processes.lookup(&tgid);

	if (!others || (state && state->process_owners && state->generation == config->generation))
		return owners;
	return add_owners(owners, *others, protocol, READ(sk, __sk_common.skc_num),
			  bpf_ntohs(READ(sk, __sk_common.skc_dport)));
}

/*
 * A socket that was open before we watched gets a state if it waits, so that the next reading finds
 * it. Of many idle ones none needs a state.
 */
static __always_inline void note_waiting(struct config *config, struct sock *sk,
					 struct tcp_sock *tp, u32 tcp_state)
{
	struct turned_away away;
	bool is_waiting;

	if (tcp_state == TCP_LISTEN)
		is_waiting = READ(sk, sk_ack_backlog) != 0;
	else
		is_waiting = READ(tp, copied_seq) != READ(tp, rcv_nxt) ||
			     READ(tp, write_seq) != READ(tp, snd_una);
	if (is_waiting)
		get_state(sk, config, &away);
}

#ifdef MODULE_TCP

static __always_inline void find_whole_accept_queue(struct pending_reading *reading,
						    struct sock *sk, struct tcp_sock *tp, u64 now)
{
	volatile struct pending *pending = &reading->found.kinds[PENDING_UNACCEPTED_CONNECTIONS];
	u32 queued = READ(sk, sk_ack_backlog);

	find_accept_queue(reading, sk, tp, true, now);
	if (pending->count < queued)
		pending->count = pending->sockets = queued;
}

#endif

/*
 * bpf_iter__task_file, kernel/bpf/task_iter.c, 5.8+: each open file. For targets chosen by process,
 * whose sockets are known by nothing else, and for kernels that let programs iterate over no map.
 */
int on_pending_file(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[1];
	struct file *file = (struct file *)ctx[3];
	struct pending_reading *reading = get_pending_reading();
	struct config *config = get_config();
	struct socket_state *state;
	struct socket *socket;
	struct tcp_sock *tp;
	u32 tcp_state, protocol;
	struct sock *sk;
	owners_t owners;
	u64 now;

	if (!config || !reading)
		return 0;
	report_last_socket(reading);
	begin_to_measure_ticks(reading);
	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file); /* 5.11+ */
	if (!socket)
		return 0;
	sk = READ(socket, sk);
	if (!sk)
		return 0;
	protocol = protocol_of(sk);
	if (!protocol)
		return 0;
	state = find_state(sk);
	owners = add_holder(config, state, present_owners(config, state, sk), task, sk, protocol);
	if (!begin_socket(reading, owners))
		return 0;
	if (protocol == PROTOCOL_UDP) {
		if (state && state->pending_in != (u8)reading->number) {
			state->pending_in = reading->number;
			find_pending_datagrams(reading, config, sk);
		}
		return 0;
	}
	tp = get_tcp_sock(sk);
	if (!tp)
		return 0;
	tcp_state = READ(sk, __sk_common.skc_state);
	if (!state) {
		note_waiting(config, sk, tp, tcp_state);
		return 0;
	}
	if (state->pending_in == (u8)reading->number)
		return 0; /* another process has it open, too */
	state->pending_in = reading->number;
	now = bpf_ktime_get_ns();
#ifdef MODULE_TCP
	if (tcp_state == TCP_LISTEN)
		find_whole_accept_queue(reading, sk, tp, now);
	else
#endif
		find_pending(reading, state, sk, tp, tcp_state, now);
	return 0;
}

#endif
