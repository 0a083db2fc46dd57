/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tcp: the path of received segments, from the peer's TCP to the socket, by the time stamps of
 * the peer (RFC 7323).
 *
 * Our time of arrival less the peer's time stamp is the difference of two clocks, and the time in
 * transit. The least of a connection is taken for an empty path. What exceeds it is growth: the segment
 * waited in a queue, whatever the peer's application does. A time stamp is a millisecond coarse, so
 * that much is subtracted.
 *
 * The clocks may drift. So the least rises, by some 95 parts in a million: more than clocks drift, and
 * a queue of 50 ms that never empties is forgotten after nine minutes. It is no least before the
 * peer's clock is known to count milliseconds.
 */

/* A unit of time that is cheap to have: 1.05 ms. */
#define TO_UNITS 20
#define UNIT_US 1049
/* How long a connection has to be watched, and by which part its clocks may differ then. */
#define PROOF_UNITS 128
#define MOST_UNITS (1 << 20)
#define PROOF_PART 4
#define UNITS_A_US_OF_DRIFT 10
#define STAMP_US 1000
#define MOST_GROWTH_US 4000000 /* so that its nanoseconds have 32 bits */
/* Of segments that follow each other, one in about 100 ms. */
#define UNITS_BETWEEN_SAMPLES 96

/* In microseconds, and modulo 2**32. */
static __always_inline u32 clock_difference(struct tcp_sock *tp, u32 stamp, u64 now)
{
#if TYPED && \
	defined(HAVE_tcp_sock_tcp_usec_ts) /* 6.7+: an option of routes, which both ends have */
	if (READ(tp, tcp_usec_ts))
		return (u32)(now / 1000) - stamp;
#endif
	return (u32)(now / 1000) - stamp * STAMP_US;
}

static __always_inline void set_least(volatile struct socket_path *path, u32 difference_us, u32 at)
{
	path->least_us = difference_us;
	path->least_at = at;
}

/* A clock that counts another unit is far off after a while. A queue is not, after a longer one. */
static __always_inline bool is_clock_known(volatile struct socket_path *path, u32 difference_us,
					   u32 at)
{
	s32 over = difference_us - path->least_us;
	u32 age = at - path->least_at;
	s32 most = age * (UNIT_US / PROOF_PART);

	if (path->is_clock_known)
		return true;
	if (!path->is_clock_seen || age > MOST_UNITS) {
		path->is_clock_seen = 1;
		set_least(path, difference_us, at);
	} else if (age >= PROOF_UNITS && over < most && over > -most) {
		path->is_clock_known = 1;
	}
	return path->is_clock_known;
}

/*
 * Note a segment's time stamp; the growth of its path is in `growth_us`. Only `is_data` is a least: an
 * ACK leaves at once, with the time stamp at which the peer's pacing lets the next segment go, which may
 * be yet to come: __tcp_transmit_skb(), net/ipv4/tcp_output.c, tcp_wstamp_ns.
 */
static __always_inline void note_stamp(volatile struct socket_path *path, u32 difference_us, u32 at,
				       bool is_data)
{
	s64 over = (s32)(difference_us - path->least_us);

	over -= (at - path->least_at) / UNITS_A_US_OF_DRIFT;
	if (over <= 0 && is_data)
		set_least(path, difference_us, at);
	path->growth_us = MOST_GROWTH_US - at_least_0(MOST_GROWTH_US - at_least_0(over - STAMP_US));
}

static __always_inline void record_growth(struct config *config, owners_t owners, u32 ns)
{
	int i;

#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, owners >>= OWNER_BITS) {
		struct slot_stats *slot = stats_of_first(config, owners);

		if (slot)
			record_saturated(config, &slot->stages[STAGE_TCP_QUEUEING], ns);
	}
}

/*
 * A segment with data counts if it answers or asks: we have sent since the last one. Of others, which
 * follow each other, few count.
 */
static __always_inline void sample_path(struct config *config, struct socket_state *state,
					volatile struct socket_path *path, u32 at)
{
	if (!path->is_first && (u16)(at - path->sampled_at) < UNITS_BETWEEN_SAMPLES)
		return;
	path->sampled_at = at;
	if (is_open(config))
		record_growth(config, state->owners, path->growth_us * 1000);
}

/*
 * The time of TCP's timer for delayed ACKs, with its rounding to jiffies. It may be as long as a round
 * trip, if that is longer: tcp_send_delayed_ack(), net/ipv4/tcp_output.c.
 */
#define DELAYED_ACK_US 40000
#define DELAYED_ACK_EARLY_US 6000
#define DELAYED_ACK_LATE_US 20000
/* An ACK with data is taken as delayed when it is later than this, or than half the least round trip. */
#define WITH_DATA_LATE_US 4000

static __always_inline bool is_delayed(enum ack ack, u32 held_us, u32 least_us)
{
	u32 longest_us = least_us > DELAYED_ACK_US ? least_us : DELAYED_ACK_US;

	if (ack == ACK_BARE)
		return held_us >= DELAYED_ACK_US - DELAYED_ACK_EARLY_US &&
		       held_us <= longest_us + DELAYED_ACK_LATE_US;
	return ack == ACK_WITH_DATA && (held_us > least_us / 2 || held_us > WITH_DATA_LATE_US);
}

/*
 * How long the peer held back the ACK before this one: as far as its path had not grown, and on its
 * path out as much as in.
 */
static __always_inline void note_delay(struct config *config, struct socket_state *state,
				       volatile struct socket_path *path, struct tcp_sock *tp)
{
	u32 least_us = READ(tp, rtt_min.s[0].v), rtt_us = READ(tp, rack.rtt_us);
	u32 held_us = at_least_0((s64)rtt_us - least_us - 2 * (u64)path->ack_growth_us);

	if (!is_open(config) || !is_delayed(state->last_ack, held_us, least_us))
		return;
	add_time_for(config, state->owners, COUNTER_DELAYED_ACKS, COUNTER_DELAYED_ACK_NS,
		     (u64)held_us * 1000);
}

/*
 * A peer with Nagle's algorithm that writes a message in pieces sends the next one when the ACK of the
 * one before comes. If our application has nothing to say before it has the whole message, our TCP
 * delays that ACK. So the gap between the pieces ends one round trip after our timer has expired.
 *
 * The timer leaves its time in tcp_mstamp, tcp_delack_timer_handler(), net/ipv4/tcp_timer.c. So does a
 * read, tcp_rcv_space_adjust(), whose time is known.
 */
#define READ_US 100
#define LATE_US 2000 /* that a peer takes to send, and a timer to be coarse */

static __always_inline bool was_held(struct socket_state *state, volatile struct socket_path *path,
				     struct tcp_sock *tp, u64 now)
{
	u64 acknowledged_us = READ(tp, tcp_mstamp), least_us = READ(tp, rtt_min.s[0].v);
	u64 waited_us = acknowledged_us - path->data_ns / 1000;
	u64 passed_us = now / 1000 - acknowledged_us;

	return is_delayed(ACK_BARE, waited_us, least_us) &&
	       acknowledged_us - state->turns.read_ns / 1000 > READ_US &&
	       READ(tp, rcv_wup) == READ(tp, rcv_nxt) && passed_us >= least_us - least_us / 8 &&
	       passed_us <= least_us + least_us / 4 + LATE_US + 2 * (u64)path->growth_us;
}

/*
 * Our window limits a peer that sends as much as it allows: then nothing more comes until our window
 * updates have reached the peer. So a message is followed in rounds of a round trip. Each begins with the
 * place where our window ends then. If all that came in it ends there, too, the peer had to wait for us.
 * Not of nearer peers: their waits are too short for attention, and our clock too coarse.
 */
#define TO_ROUND_UNITS 17 /* 131 us */
#define ROUND_UNIT_NS (1ULL << TO_ROUND_UNITS)
#define NEAR_US 1000
#define TO_WINDOW_UNITS 8 /* bytes */
#define WINDOW_UNITS_MASK 0xffffffU
/* A peer sends no piece of a segment. It may send its data in equal steps: less than that is left. */
#define SPREAD_PART 8

static __always_inline u32 window_left(volatile struct socket_path *path, struct tcp_sock *tp)
{
	u32 came = READ(tp, rcv_nxt) >> TO_WINDOW_UNITS;

	return ((path->round_end - came) & WINDOW_UNITS_MASK) << TO_WINDOW_UNITS;
}

/* The application has read all: else it is the reader that keeps the window small. */
static __always_inline bool is_window_used_up(volatile struct socket_path *path,
					      struct tcp_sock *tp)
{
	u32 segment = READ(tp, inet_conn.icsk_ack.rcv_mss);

	return window_left(path, tp) <= segment + READ(tp, rcv_wnd) / SPREAD_PART &&
	       READ(tp, copied_seq) == READ(tp, rcv_nxt);
}

/* Data of a message comes, and has not changed the socket yet. */
static __always_inline void follow_window(struct config *config, struct socket_state *state,
					  volatile struct socket_path *path, struct tcp_sock *tp,
					  struct incoming *incoming, u64 now)
{
	u64 least_us = READ(tp, rtt_min.s[0].v), passed_us;
	u16 at = now >> TO_ROUND_UNITS, passed = at - path->round_at;

	if (least_us < NEAR_US || incoming->is_beside)
		return;
	passed_us = passed * ROUND_UNIT_NS / 1000;
	/* of a path without jitter each is as short as the shortest, and our clock is coarse */
	if (!path->is_first && passed_us < least_us - least_us / 8)
		return;
	if (!path->is_first && passed_us <= 2 * (least_us + path->growth_us) &&
	    is_window_used_up(path, tp) && is_open(config))
		add_time_for(config, state->owners, COUNTER_OWN_WINDOW_FULL,
			     COUNTER_OWN_WINDOW_FULL_NS, passed * ROUND_UNIT_NS);
	path->round_at = at;
	path->round_end = (READ(tp, rcv_wup) + READ(tp, rcv_wnd)) >> TO_WINDOW_UNITS;
}

/*
 * The message is over, since we have sent. One with more gaps is no message in pieces, but a peer that
 * sends now and then.
 */
#define MOST_GAPS 2
/* After a longer pause it may be another message, without a request. */
#define LONGEST_PAUSE_NS 1000000000
#define PAUSED 1 /* as the beginning of such a message */

/* Not a certain one is longer than TOO_LONG_NS: so it is unmatched, without a branch. */
#define UNCERTAIN_BITS 40

static __always_inline u64 transfer_of(struct socket_state *state,
				       volatile struct socket_path *path)
{
	u64 began_ns = path->began_ns, overlaps = state->turns.overlaps & OVERLAPS;
	u64 is_uncertain = is_equal(began_ns, PAUSED) |
			   (1 - is_below_0(overlaps - OVERLAPS_OF_A_MULTIPLEX));

	return (path->data_ns - began_ns) | is_uncertain << UNCERTAIN_BITS;
}

static __always_inline void end_message(struct config *config, struct socket_state *state,
					volatile struct socket_path *path)
{
	u32 gaps = path->gaps;

	path->gaps = 0;
	if (gaps && gaps <= MOST_GAPS && is_open(config))
		add_time_for(config, state->owners, COUNTER_HELD_BACK_BY_PEER,
			     COUNTER_HELD_BACK_BY_PEER_NS, (u64)path->held_us * 1000);
	path->held_us = 0;
	if (path->began_ns && state->turns.role == ROLE_CLIENT)
		record_for(config, state->owners, STAGE_PEER_TRANSFER, transfer_of(state, path));
	path->began_ns = 0;
}

/* The connection ends, from either side. */
static __always_inline void end_last_message(struct config *config, struct socket_state *state,
					     struct sock *sk)
{
	struct socket_path *path = look_up_socket_path(sk);

	if (path)
		end_message(config, state, path);
}

/*
 * Data comes. `is_first`: a message begins with it, which is all that comes until we send. It is in the
 * socket's path, since the verifier would follow both values of a variable.
 */
static __always_inline void note_piece_of_peer(struct config *config, struct socket_state *state,
					       volatile struct socket_path *path,
					       struct tcp_sock *tp, struct incoming *incoming,
					       u64 now)
{
	u32 write_seq = READ(tp, write_seq);
	u8 is_first = 1 - is_equal(path->sent_seq, write_seq);

	path->is_first = is_first;

	if (path->data_ns < config->slice_ns) /* what came since was perhaps not seen */
		path->began_ns = 0;
	if (is_first) {
		end_message(config, state, path);
		path->sent_seq = write_seq;
		path->began_ns = is_open(config) ? now : 0;
	} else if (now - path->data_ns > LONGEST_PAUSE_NS && path->began_ns) {
		path->began_ns = PAUSED;
	} else if (now - path->data_ns > (DELAYED_ACK_US - DELAYED_ACK_EARLY_US) * 1000ULL &&
		   !incoming->is_beside && was_held(state, path, tp, now)) {
		path->held_us += (now - path->data_ns) / 1000;
		path->gaps += path->gaps <= MOST_GAPS;
	}
	follow_window(config, state, path, tp, incoming, now);
	path->data_ns = now;
}

static __always_inline u64 is_small_ack(struct socket_state *state)
{
	return is_below_0((u64)ACK_BARE - 1 - state->last_ack);
}

/* With data, the ACK of all that is in transit, or after such a one: only their path matters. */
static __always_inline u64 has_path(struct socket_state *state, struct tcp_sock *tp,
				    struct incoming *incoming)
{
	u64 has_data = 1 - is_equal(incoming->seq, incoming->end_seq);

	return has_data | is_equal(incoming->ack_seq, READ(tp, snd_nxt)) | is_small_ack(state);
}

static __always_inline bool is_new_data(struct tcp_sock *tp, struct incoming *incoming)
{
	return is_after(incoming->end_seq, READ(tp, rcv_nxt));
}

/* NULL: nothing of this segment matters here, or memory is short. */
static __always_inline struct socket_path *get_path(struct socket_state *state, struct sock *sk,
						    struct tcp_sock *tp, struct incoming *incoming)
{
	struct socket_path *path;

	if (!has_path(state, tp, incoming))
		return 0;
	path = look_up_socket_path(sk);
	return path ? path : create_socket_path(sk);
}

/*
 * The peer has sent this after it had all that we wrote since its last data, which was so short a time
 * ago that the path cannot have grown. (Without a write tcp_wstamp_ns may be that of an ACK.) Then its
 * time stamp is not read, unless it is the first sample of its millisecond.
 */
#define QUICK_NS 100000

/* 1 or 0. Without a branch, as is_above() and for the same reason. */
static __always_inline u64 is_quick(volatile struct socket_path *path, struct tcp_sock *tp,
				    struct incoming *incoming, u64 now)
{
	/* below 0: it is yet to leave, by its pacing */
	u64 passed_ns = now - READ(tp, tcp_wstamp_ns);

	return path->is_clock_known & is_equal(path->sampled_at, (u16)(now >> TO_UNITS)) &
	       (1 - is_equal(path->sent_seq, READ(tp, write_seq))) &
	       is_equal(incoming->ack_seq, READ(tp, write_seq)) &
	       is_below_0((s64)(s32)(READ(tp, snd_una) - incoming->ack_seq)) &
	       (1 - is_below_0(passed_ns)) & is_below_0(passed_ns - QUICK_NS);
}

/* Ahead of sample_rtt(), which notes how this ACK came. */
static __always_inline void note_path(struct config *config, struct socket_state *state,
				      struct socket_path *path, struct tcp_sock *tp,
				      struct incoming *incoming, u64 now)
{
	bool is_ack = is_after(incoming->ack_seq, READ(tp, snd_una));
	u32 difference_us, at;
	bool is_data;

	if (is_ack) {
		if (is_small_ack(state) && !incoming->is_beside)
			note_delay(config, state, path, tp);
		path->ack_growth_us = 0;
	}
	if (is_new_data(tp, incoming))
		note_piece_of_peer(config, state, path, tp, incoming, now);
	at = now >> TO_UNITS;
	if (incoming->is_quick) {
		path->growth_us = 0;
		if (is_new_data(tp, incoming))
			sample_path(config, state, path, at);
		return;
	}
	if (!incoming->has_stamp)
		return;
	difference_us = clock_difference(tp, incoming->stamp, now);
	is_data = is_new_data(tp, incoming);
	if (is_data ? !is_clock_known(path, difference_us, at) : !path->is_clock_known)
		return;
	note_stamp(path, difference_us, at, is_data);
	if (is_ack)
		path->ack_growth_us = path->growth_us +
				      (1 - is_equal(path->growth_us, 0)) * STAMP_US;
	if (is_data)
		sample_path(config, state, path, at);
}
