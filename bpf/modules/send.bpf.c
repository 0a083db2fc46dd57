// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Module tx, its beginning: when an application handed TCP the bytes that a segment begins with.
 *
 * These bytes get the next sequence numbers (tp->write_seq) and wait in the send queue until the
 * windows, pacing and Nagle's algorithm let them go. So a ring of hand-offs in the socket's state
 * has the time of every byte that is not yet sent. A segment that is sent for the first time begins
 * at tp->snd_nxt, which tcp_write_xmit() moves on only afterwards: tcp_event_new_data_sent(),
 * net/ipv4/tcp_output.c. A segment that begins before it is sent again.
 */

/*
 * The limit up to which the two windows let TCP send now, the tighter window, and other obstacles.
 */
static __always_inline void note_limit(struct handoff *handoff, struct tcp_sock *tp, u64 now)
{
	u32 window = READ(tp, snd_wnd);
	u64 congestion = (u64)READ(tp, snd_cwnd) * READ(tp, mss_cache);

	handoff->is_window = window <= congestion;
	handoff->limit_end = READ(tp, snd_una) + (window <= congestion ? window : (u32)congestion);
	/* other bytes are before these, or the next departure is yet to come: pacing */
	handoff->is_behind = handoff->seq != READ(tp, snd_nxt) || READ(tp, tcp_wstamp_ns) > now;
}

static __always_inline void forget_sent_of(volatile struct socket_queue *queue,
					   struct handoff *handed, u32 size, u32 sent)
{
	u32 i;

	for (i = 0; i < size; i++) {
		if (queue->handed_tail - queue->handed_head < 2 ||
		    is_after(handed[(queue->handed_head + 1) & (size - 1)].seq, sent))
			break;
		queue->handed_head++;
	}
}

/*
 * Forget hand-offs that were sent wholly, of as many as there is room for. A loop for each table: in
 * one for both the verifier would follow both in each round.
 */
static __always_inline void forget_sent(struct socket_queue *queue, struct handoff_ring *ring,
					u32 sent)
{
	if (ring)
		forget_sent_of(queue, ring->handed, HANDOFFS, sent);
	else
		forget_sent_of(queue, queue->handed, FEW_HANDOFFS, sent);
}

/*
 * Make room in a full ring: hand-offs that follow each other become one, with the older time, if
 * this makes the later bytes older by at most a twelfth of the time that the ring spans. Of three
 * neighbours two are further apart than that, so at least five places become free. Without a branch
 * in the loop: the verifier would follow them all.
 */
#define MERGED_PARTS 12

static __always_inline void keep_handoff(struct handoff *into, struct handoff *from, u64 keep)
{
	u64 *to = (u64 *)into, *of = (u64 *)from, mask = -keep;
	u32 end = from->end, i;

#pragma unroll
	for (i = 0; i < sizeof(*into) / sizeof(u64); i++)
		to[i] = (of[i] & mask) | (to[i] & ~mask);
	into->end = end;
}

static __always_inline void merge_handoffs(volatile struct socket_queue *queue,
					   struct handoff_ring *ring, u64 now)
{
	u32 into = queue->handed_head, from = into, i;
	u64 oldest_ns = ring->handed[into & (HANDOFFS - 1)].handed_ns;
	u64 most = (now - oldest_ns) / MERGED_PARTS, is_apart;
	struct handoff *last, *handoff, *next;

	if (!oldest_ns) /* not known */
		return;
	for (i = 0; i < HANDOFFS - 3; i++) {
		from++;
		last = &ring->handed[into & (HANDOFFS - 1)];
		handoff = &ring->handed[from & (HANDOFFS - 1)];
		next = &ring->handed[(from + 1) & (HANDOFFS - 1)];
		/* too long, of unknown time, or behind bytes that came unseen */
		is_apart = (most - (next->handed_ns - last->handed_ns)) >> 63 |
			   (handoff->handed_ns - 1) >> 63 | (next->handed_ns - 1) >> 63 |
			   (last->end - handoff->seq) >> 31;
		asm volatile("" : "+r"(is_apart));
		into += is_apart;
		keep_handoff(&ring->handed[into & (HANDOFFS - 1)], handoff, is_apart);
	}
	into++;
	keep_handoff(&ring->handed[into & (HANDOFFS - 1)],
		     &ring->handed[(from + 1) & (HANDOFFS - 1)], 1);
	queue->handed_tail = into + 1;
}

/*
 * `length` bytes are about to be copied to the end of the send queue. If the ring stays full, since
 * bytes between the hand-offs came unseen, it ends with one of unknown time until there is room
 * again: what begins there is lost, the rest exact.
 */
static __always_inline void note_handoff(struct sock *sk, struct socket_state *state,
					 struct socket_queue *queue, struct tcp_sock *tp, u32 seq,
					 u32 end, u64 now)
{
	struct handoff_ring *ring = find_handoff_ring(sk, queue);
	u32 room = ring ? HANDOFFS : FEW_HANDOFFS, used;
	struct handoff *handoff;

	if (!is_after(seq, READ(tp, snd_nxt))) /* nothing waits */
		queue->handed_head = queue->handed_tail;
	if (queue->handed_tail - queue->handed_head >= room - 1)
		forget_sent(queue, ring, READ(tp, snd_nxt));
	if (queue->handed_tail - queue->handed_head == room - 1) {
		if (ring)
			merge_handoffs(queue, ring, now);
		else
			ring = widen_handoffs(sk, state, queue);
		room = ring ? HANDOFFS : FEW_HANDOFFS;
	}
	used = queue->handed_tail - queue->handed_head;
	if (used >= room)
		return;
	handoff = handoff_at(queue, ring, queue->handed_tail);
	handoff->seq = seq;
	handoff->end = end;
	handoff->handed_ns = used == room - 1 ? 0 : now;
	note_limit(handoff, tp, now);
	queue->handed_tail++;
}

static __always_inline struct handoff *last_handoff(struct sock *sk, struct socket_queue *queue)
{
	return handoff_at(queue, find_handoff_ring(sk, queue), queue->handed_tail - 1);
}

/* True if these bytes follow unsent ones of the same message: it ends where that one would. */
static __always_inline bool continues(struct sock *sk, struct socket_queue *queue,
				      struct tcp_sock *tp, u32 seq, u32 end)
{
	struct handoff *last = last_handoff(sk, queue);

	return queue->handed_head != queue->handed_tail && last->end == end &&
	       is_after(seq, last->seq) && is_after(seq, READ(tp, snd_nxt));
}

/*
 * A piece of `msg` is about to be copied, into `skb` if there is room in it. A piece for the same skb
 * as the one before it came with it: no wait is between them.
 */
static __always_inline void note_piece(struct socket_state *state, struct sock *sk,
				       struct tcp_sock *tp, struct msghdr *msg, struct sk_buff *skb,
				       u32 size_goal, u64 now)
{
	struct socket_queue *queue = get_queue(sk, state);
	u32 seq = READ(tp, write_seq);
	u32 end = seq + (u32)READ(msg, msg_iter.count);

	if (!queue)
		return;
	if (!skb || READ(skb, len) >= size_goal || !continues(sk, queue, tp, seq, end))
		note_handoff(sk, state, queue, tp, seq, end, now);
}

/*
 * A message is about to be copied. Before a connection stands (TCP Fast Open, a connect that has not ended)
 * the numbers are not those that its bytes will have.
 */
static __always_inline void note_message(struct socket_state *state, struct sock *sk,
					 struct tcp_sock *tp, u32 length, u64 now)
{
	u8 tcp_state = READ(sk, __sk_common.skc_state);
	u32 seq = READ(tp, write_seq);
	struct socket_queue *queue;

	if (tcp_state != TCP_ESTABLISHED && tcp_state != TCP_CLOSE_WAIT)
		return;
	queue = get_queue(sk, state);
	if (queue)
		note_handoff(sk, state, queue, tp, seq, seq + length, now);
}

/* The send buffer was full and has room again: the rest of the message is handed over only now. */
static __always_inline void note_rest(struct sock *sk, struct socket_state *state,
				      struct tcp_sock *tp)
{
	struct socket_queue *queue = look_up_socket_queue(sk);
	u32 seq = READ(tp, write_seq), end;

	if (!queue)
		return;
	end = last_handoff(sk, queue)->end;
	if (is_after(end, seq))
		note_handoff(sk, state, queue, tp, seq, end, bpf_ktime_get_ns());
}

/* The same where only the beginning of that wait is seen: the rest will be unmatched. */
static __always_inline void give_up_rest(struct sock *sk, struct tcp_sock *tp)
{
	struct socket_queue *queue = look_up_socket_queue(sk);
	u32 seq = READ(tp, write_seq);
	struct handoff *last;

	if (!queue)
		return;
	last = last_handoff(sk, queue);
	if (is_after(last->end, seq))
		last->end = seq;
}

/* TCP paces this socket: by its congestion control (BBR), or since the application asked for it. */
static __always_inline u64 is_paced(struct sock *sk)
{
	return 1 - is_equal(PEEK(sk, sk_pacing_status), SK_PACING_NONE);
}

/*
 * Beyond the limits of its first byte, a paced segment may have waited for the congestion window to open,
 * or for its turn. What waited for an ACK leaves with the ACK, tcp_data_snd_check(),
 * net/ipv4/tcp_input.c. What is in flight counts without this segment: tcp_event_new_data_sent()
 * comes later.
 */
#define WITH_ACK_US 100

static __always_inline u64 waited_for_pacing(struct sock *sk, struct tcp_sock *tp, u64 sent_ns)
{
	u64 in_flight = PEEK(tp, packets_out), window = PEEK(tp, snd_cwnd);
	u64 is_without_ack = is_below_0(PEEK(tp, delivered_mstamp) + WITH_ACK_US - sent_ns / 1000);

	return is_paced(sk) & (is_below_0(in_flight - window / 2) |
			       (is_below_0(in_flight - window) & is_without_ack));
}

/* In the order of their counters. */
enum obstacle { BY_WINDOW, BY_CONGESTION, BY_PACING, HELD_BACK };
_Static_assert(COUNTER_SENDS_BEHIND_CONGESTION == COUNTER_SENDS_BEHIND_WINDOW + BY_CONGESTION &&
		       COUNTER_SENDS_PACED == COUNTER_SENDS_BEHIND_WINDOW + BY_PACING &&
		       COUNTER_SENDS_HELD_BACK == COUNTER_SENDS_BEHIND_WINDOW + HELD_BACK &&
		       COUNTER_BEHIND_CONGESTION_NS == COUNTER_BEHIND_WINDOW_NS + BY_CONGESTION &&
		       COUNTER_PACED_NS == COUNTER_BEHIND_WINDOW_NS + BY_PACING &&
		       COUNTER_HELD_BACK_NS == COUNTER_BEHIND_WINDOW_NS + HELD_BACK,
	       "the counters of long waits are not in the order of enum obstacle");

/*
 * The obstacle of a segment that waited long, as it was when its first byte came. Without a branch, as
 * is_above() and for the same reason.
 */
static __always_inline u64 obstacle_of(struct handoff *handoff, struct sock *sk,
				       struct tcp_sock *tp, u32 seq, u32 length, u64 sent_ns)
{
	u64 mss = PEEK(tp, mss_cache), is_beyond, is_behind, beyond, behind;

	length -= at_least_0(length - mss); /* no more has to fit, tcp_snd_wnd_test() */
	is_beyond = is_below_0((s64)(s32)(handoff->limit_end - (seq + length)));
	beyond = (1 - (u64)handoff->is_window) *
		 (BY_CONGESTION + waited_for_pacing(sk, tp, sent_ns));
	is_behind = handoff->is_behind | (1 - is_equal(seq, handoff->seq));
	behind = is_behind * (BY_CONGESTION + is_paced(sk)) + (1 - is_behind) * HELD_BACK;
	return is_beyond * beyond + (1 - is_beyond) * behind;
}

/* Count a segment that waited long, and how long. */
static __always_inline void count_wait(struct config *config, struct socket_state *state,
				       u64 obstacle, u64 ns)
{
	asm volatile("" : "+r"(obstacle)); /* bound the register that is added */
	obstacle &= HELD_BACK;
	add_time_for(config, state->owners, COUNTER_SENDS_BEHIND_WINDOW + obstacle,
		     COUNTER_BEHIND_WINDOW_NS + obstacle, ns);
}

/* A segment of which it is not known when it was handed over: no tx.socket, and no total. */
static __always_inline void miss_handoff(struct config *config, struct socket_state *state,
					 enum missing missing)
{
	miss_for(config, state->owners, STAGE_TX_SOCKET, missing, 1);
	miss_for(config, state->owners, STAGE_TX_TOTAL, missing, 1);
}

/*
 * When the first byte of this segment was handed over; `sent_ns` if it is sent again, or without a
 * hook; 0 if that is not known. With a hand-off it is earlier than `sent_ns`, if by a nanosecond only.
 */
static __always_inline u64 find_handoff(struct config *config, struct sock *sk, struct tcp_sock *tp,
					struct socket_state *state, u32 seq, u32 length,
					u64 sent_ns)
{
	struct handoff_ring *ring;
	struct socket_queue *queue;
	struct handoff handoff;
	u64 handed_ns;

	if (!config->sees_sends || seq != PEEK(tp, snd_nxt))
		return sent_ns;
	queue = look_up_socket_queue(sk);
	if (!queue) {
		if (IS_OF_MPTCP(PEEK, tp))
			count_for(config, state->owners, COUNTER_MPTCP_SEGMENTS);
		miss_handoff(config, state, state->is_queue_refused ? LOST : UNMATCHED);
		return 0;
	}
	ring = find_handoff_ring(sk, queue);
	forget_sent(queue, ring, seq);
	copy_handoff(&handoff, handoff_at(queue, ring, queue->handed_head));
	handed_ns = handoff.handed_ns;
	if (queue->handed_head == queue->handed_tail || is_after(handoff.seq, seq) ||
	    (handed_ns && (!is_after(handoff.end, seq) || sent_ns > handed_ns + TOO_LONG_NS))) {
		if (IS_OF_MPTCP(PEEK, tp))
			count_for(config, state->owners, COUNTER_MPTCP_SEGMENTS);
		miss_handoff(config, state, UNMATCHED);
		return 0;
	}
	if (!handed_ns) {
		miss_handoff(config, state, LOST);
		return 0;
	}
	if (sent_ns > handed_ns + LONG_WAIT_NS)
		count_wait(config, state, obstacle_of(&handoff, sk, tp, seq, length, sent_ns),
			   sent_ns - handed_ns);
	return handed_ns < sent_ns ? handed_ns : sent_ns - 1;
}
