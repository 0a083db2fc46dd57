/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tcp: requests and replies, distinguished by the side that sends.
 *
 *   server: last byte read by the application --app.response--> first byte handed to TCP
 *   client: first byte handed to TCP --peer.response--> first byte of the reply at the socket
 *
 * TCP carries bytes, not requests, so the unit is a *turn*: all bytes that one side sends until the
 * other one sends. Turns are requests and replies if each request waits for the reply to the one
 * before. Sequence numbers show when that is not so: such a turn is unmatched.
 */

/*
 * After this number of overlaps the turns of a connection are no longer taken as requests (HTTP/2).
 */
#define OVERLAPS_OF_A_MULTIPLEX 4
#define OVERLAPS \
	7 /* the bits of their number; those above count clear turns, see note_clear_turn() */
/*
 * A request that continues after a longer pause, when all of it had been read, may be another one.
 * Bytes that are written at once arrive within a few round trips.
 */
#define PAUSE_NS 1000000
#define PAUSE_ROUND_TRIPS 4

enum role { ROLE_UNKNOWN, ROLE_CLIENT, ROLE_SERVER };

/*
 * For a connection that was open before we watched: an accepted socket is a copy of its listener,
 * sk_clone_lock(), net/core/sock.c, and keeps its backlog. (After listen(fd, 0) that is 0, too.)
 */
static __always_inline u32 role_of(struct sock *sk, struct turns *turns)
{
	if (!turns->role)
		turns->role = READ(sk, sk_max_ack_backlog) ? ROLE_SERVER : ROLE_CLIENT;
	return turns->role;
}

/* The connection is new: no side has sent. Until then `read_ns` is when it began. */
static __always_inline void begin_turns(struct turns *turns, struct tcp_sock *tp, enum role role)
{
	turns->role = role;
	turns->is_known = 1;
	turns->read_ns = bpf_ktime_get_ns();
	turns->turn_seq = turns->read_seq = READ(tp, copied_seq);
	turns->past = 0;
	__builtin_memset(&turns->pace, 0, sizeof(turns->pace));
}

/*
 * Two streams that cross resemble requests and answers wherever their pieces alternate. Each turn votes for
 * or against two signs of them.
 *
 * *Different paces.* Each answer is predicted twice: from the server's last bytes, as the next piece of a
 * stream, and from the request. Where the first is at least twice as exact in most turns, the server may
 * keep its own pace. A client that asks as soon as it has its answer never makes that so: both are equally
 * exact then. A service that answers by a clock, or ever later, does. So the server has to be heard at that
 * pace without a request, too: streams overtake each other. The second part of an answer comes sooner, or
 * later. An interval is predicted by the last two, and a wait by one of some turns ago.
 *
 * *Two clocks of one pace.* These streams may never overtake each other. But who waits for the other side is
 * late when that one is. So the time between two answers changes as that between their requests does, but
 * for what the server adds. If the server has a clock of its own, the change is larger without that of the
 * requests. The same holds for a client and the answers before. One clock alone is no sign: clients ask by
 * one, and services answer by one.
 */
#define PACE_UNIT_SHIFT 10	     /* 1.024 us; 32 bits of them are 73 minutes */
#define SHORTEST_INTERVAL (1U << 10) /* 1 ms: what comes more often costs no wait worth a name */
#define LONGEST_INTERVAL (1U << 26)  /* 68 s */
#define REFERENCE_MASK 7	     /* of a time: one in eight waits is remembered */
#define VOTES_OF_A_PACE 12
#define MOST_VOTES 24
#define MOST_CLOCK_VOTES 15
#define VOTES_OF_TWO_CLOCKS 8

static __always_inline u32 in_units(u64 ns)
{
	return ns >> PACE_UNIT_SHIFT;
}

/* Without a branch, and so is what follows, as is_above() and for the same reason. */
static __always_inline u32 apart(s64 left, s64 right)
{
	s64 difference = left - right, sign = is_below_0(difference);

	return (difference ^ -sign) + sign;
}

static __always_inline u32 lesser(u32 one, u32 other)
{
	return other + ((one - (s64)other) & -is_below_0(one - (s64)other));
}

/*
 * A time as its leading bits, 13 of them, and their exponent, in 16 bits: to 1 us, from 8.4 ms on to 2 us.
 */
#define TIME_BITS 12
#define ROUNDED_TWICE 4 /* differences of changes, in units of their exponent */

static __always_inline u16 pack_time(u64 time)
{
	u32 exponent = log2_of(time >> TIME_BITS);

	return (exponent << TIME_BITS) + (time >> exponent);
}

static __always_inline u32 exponent_of(u16 packed)
{
	u32 exponent = packed >> TIME_BITS;

	return exponent - is_below_0(-(u64)exponent);
}

static __always_inline u32 unpack_time(u16 packed)
{
	u32 exponent = exponent_of(packed);

	return (packed - (exponent << TIME_BITS)) << exponent;
}

/* A change of an interval, or of a wait in it, in units of the interval's exponent. */
#define LARGEST_CHANGE 0x7fff

static __always_inline s16 pack_change(s64 change, u16 interval)
{
	u32 size = lesser(apart(change, 0) >> exponent_of(interval), LARGEST_CHANGE);
	u32 sign = is_below_0(change);

	return (size ^ -sign) + sign;
}

static __always_inline s64 unpack_change(s16 change, u16 interval)
{
	return (s64)change << exponent_of(interval);
}

static __always_inline void vote_against(struct pace *pace)
{
	if (pace->votes)
		pace->votes--;
	else
		pace->is_twice = 0;
}

/*
 * One more if `own` is at least twice as exact as `other`, one less if it is the reverse. `least`: what is
 * smaller may be a rounding of packed times.
 */
static __always_inline u32 voted(u32 votes, u32 own, u32 other, u32 least)
{
	u32 more = is_below_0(2 * (u64)own - other) & is_below_0(least - (u64)other) &
		   is_below_0((u64)votes - MOST_CLOCK_VOTES);
	u32 less = is_below_0(2 * (u64)other - own) & is_below_0(-(u64)votes);

	return votes + more - less;
}

/*
 * The changes since the turn before. Without that of the time between requests, `of_requests`, `of_waits` is
 * left of the interval's. A server that is always busy is late by its answers: an earlier one shows as much.
 */
static __always_inline void note_clocks(struct pace *pace, s64 interval_change, s64 wait_change,
					u32 by_request)
{
	s64 of_last = unpack_change(pace->interval_change, pace->interval);
	s64 of_waits = wait_change - unpack_change(pace->wait_change, pace->interval);
	s64 of_requests = interval_change - of_waits;
	u32 least = ROUNDED_TWICE << exponent_of(pace->interval);

	pace->server_votes = voted(pace->server_votes, apart(interval_change, 0),
				   lesser(apart(of_waits, 0), by_request), least);
	pace->client_votes = voted(pace->client_votes, apart(of_requests, 0),
				   apart(of_requests - of_last, 0), least);
}

/* An answer begins now, `wait_ns` after its request. */
static __always_inline void note_pace(struct pace *pace, u64 wait_ns, u64 now)
{
	u32 interval = in_units(now) - pace->piece, wait = in_units(wait_ns), by_request;
	u16 packed_interval, packed_wait;
	s64 interval_change, wait_change, from_two;

	if (!pace->piece)
		return;
	if (interval < SHORTEST_INTERVAL || interval >= LONGEST_INTERVAL ||
	    wait_ns >> PACE_UNIT_SHIFT >= LONGEST_INTERVAL) {
		vote_against(pace);
		pace->server_votes -= is_below_0(-(u64)pace->server_votes);
		return;
	}
	/* what was packed is compared with what was packed */
	packed_interval = pack_time(interval);
	packed_wait = pack_time(wait);
	interval_change = (s64)unpack_time(packed_interval) - unpack_time(pace->interval);
	wait_change = (s64)unpack_time(packed_wait) - unpack_time(pace->wait);
	by_request = apart(wait, unpack_time(pace->reference));
	if (pace->interval) {
		/* twice the distance from the mean of the last two */
		from_two = 2 * interval_change +
			   unpack_change(pace->interval_change, pace->interval);
		if (apart(from_two, 0) < by_request &&
		    by_request > ROUNDED_TWICE << exponent_of(packed_interval))
			pace->votes += pace->votes < MOST_VOTES;
		else
			vote_against(pace);
		if (pace->is_whole)
			note_clocks(pace, interval_change, wait_change, by_request);
	}
	pace->interval = packed_interval;
	pace->wait = packed_wait;
	pace->interval_change = pack_change(interval_change, packed_interval);
	pace->wait_change = pack_change(wait_change, packed_interval);
	if (!pace->reference || !(pace->piece & REFERENCE_MASK))
		pace->reference = packed_wait;
}

/* Neither side waits for the other one. */
static __always_inline bool keeps_own_pace(struct pace *pace)
{
	return (pace->is_twice && pace->votes >= VOTES_OF_A_PACE) ||
	       (pace->server_votes >= VOTES_OF_TWO_CLOCKS &&
		pace->client_votes >= VOTES_OF_TWO_CLOCKS);
}

static __always_inline bool is_multiplex(struct turns *turns)
{
	return (turns->overlaps & OVERLAPS) >= OVERLAPS_OF_A_MULTIPLEX ||
	       keeps_own_pace(&turns->pace);
}

static __always_inline void note_overlap(struct turns *turns)
{
	u32 overlaps = turns->overlaps & OVERLAPS;

	turns->overlaps = overlaps < OVERLAPS_OF_A_MULTIPLEX ? overlaps + 1 : overlaps;
}

/*
 * A request and its answer without a doubt. 32 in a row outweigh an overlap, since each halt of a sender
 * makes one in a long life.
 */
static __always_inline void note_clear_turn(struct turns *turns)
{
	u32 overlaps = turns->overlaps;

	if (!(overlaps & OVERLAPS))
		return;
	overlaps += OVERLAPS + 1;
	turns->overlaps = overlaps > 0xff ? (overlaps & OVERLAPS) - 1 : overlaps;
}

/*
 * The past of a connection: the number of its answers, and the longest wait for one, both saturated.
 * See peers.bpf.c.
 */
#define ANSWER_SHIFT 24 /* 17 ms: more than 1 s in 68 units */
#define ANSWER_BITS 12	/* 69 s */
#define LONGEST_ANSWER ((1U << ANSWER_BITS) - 1)
#define MOST_ANSWERS (0xffffU >> ANSWER_BITS)

/* It has waited so long without harm: `answers` is 0 if what ended the wait was no answer. */
static __always_inline void note_wait(struct turns *turns, u64 ns, u32 answers)
{
	u32 past = turns->past, slowest = past & LONGEST_ANSWER, number = past >> ANSWER_BITS;
	u64 units = (ns >> ANSWER_SHIFT) + 1;

	if (units > LONGEST_ANSWER)
		units = LONGEST_ANSWER;
	if (units > slowest)
		slowest = units;
	if (number < MOST_ANSWERS)
		number += answers;
	turns->past = number << ANSWER_BITS | slowest;
}

/* Also an answer that is too doubtful to be a sample: whoever waited for it was patient. */
static __always_inline void note_answer(struct turns *turns, u64 ns)
{
	note_wait(turns, ns, 1);
}

static __always_inline void end_turn(struct config *config, struct socket_state *state, u32 stage,
				     bool is_certain, u64 ns)
{
	note_answer(&state->turns, ns);
	if (is_certain && stage != STAGE_APP_TRANSFER)
		note_clear_turn(&state->turns);
	if (is_certain && !is_multiplex(&state->turns))
		record_for(config, state->owners, stage, ns);
	else
		unmatched_for(config, state->owners, stage, 1);
}

/*
 * The server speaks. If that is unasked, and after about the last interval, a stream may. (Two CPUs may be
 * here with their times in another order.)
 */
static __always_inline void note_speech(struct pace *pace, bool is_unasked, u64 now)
{
	u32 piece = in_units(now), quiet = piece - pace->piece;
	u32 interval = unpack_time(pace->interval);

	if (!is_unasked) {
		pace->is_whole = 1;
	} else if (quiet >= SHORTEST_INTERVAL) {
		pace->is_whole = 0;
		if (pace->piece && quiet > interval / 2 && quiet < interval * 2)
			pace->is_twice = 1;
	}
	pace->piece = piece ? piece : 1;
}

/* Received and not read. An in-order FIN counts in rcv_nxt, tcp_fin(); its reading in copied_seq. */
static __always_inline u32 unread_bytes(struct sock *sk, struct tcp_sock *tp)
{
	u32 unread = READ(tp, rcv_nxt) - READ(tp, copied_seq);

	return unread && READ(sk, sk_shutdown) & RCV_SHUTDOWN ? unread - 1 : unread;
}

/* The application gets the bytes from `read_from` to `read_seq`. */
static __always_inline void note_read(struct config *config, struct socket_state *state, u64 now)
{
	struct turns *turns = &state->turns;

	if (!turns->is_known) {
		turns->is_known = 1;
		turns->turn_seq = state->read_from;
	}
	turns->read_ns = is_open(config) ? now : 0;
	turns->read_seq = state->read_seq;
}

/*
 * True if we saw the read of the last byte that was read: not so after splice(), MSG_TRUNC and the
 * like. Reading the peer's FIN counts as a byte; if it came late, the request ended with it.
 */
static __always_inline bool is_read_seen(struct sock *sk, struct turns *turns, u32 copied_seq)
{
	if (turns->read_seq == copied_seq)
		return true;
	return turns->read_seq == copied_seq - 1 && READ(sk, sk_shutdown) & RCV_SHUTDOWN &&
	       !turns->is_end_late;
}

/*
 * An answer begins; the one before has ended. Its last byte was sent when the segment was that was sent
 * last among those that are acknowledged: tcp_rack_advance(), net/ipv4/tcp_recovery.c. 0: the peer
 * knows no selective ACKs. The peer has asked again, so its ACK was processed.
 */
static __always_inline void end_answer(struct config *config, struct socket_state *state,
				       struct sock *sk, struct tcp_sock *tp, u64 now)
{
	struct socket_path *path = look_up_socket_path(sk);
	u64 sent_ns = READ(tp, rack.mstamp) * 1000, began_ns;

	if (!path)
		return;
	began_ns = path->answer_ns;
	path->answer_ns = is_open(config) ? now : 0;
	if (began_ns > config->slice_ns && sent_ns)
		end_turn(config, state, STAGE_APP_TRANSFER,
			 READ(tp, snd_una) == READ(tp, write_seq), at_least_0(sent_ns - began_ns));
}

/*
 * A server may speak first (SMTP, MySQL), and late, as after a query for its client's name. A
 * subscription begins in the same form, without a wait: so these are counted, and are no samples.
 */
#define LATE_NS 100000000ULL

/* Bytes come, or go, that no request was before. They are a greeting if they are the first. */
static __always_inline void note_unasked(struct config *config, struct socket_state *state,
					 struct tcp_sock *tp, u64 now)
{
	u64 began_ns = state->turns.read_ns, waited_ns = at_least_0(now - began_ns);

	if (!began_ns || config->slice || READ(tp, bytes_received) || READ(tp, bytes_sent))
		return;
	state->turns.read_ns = 0; /* the next ones are no greeting */
	if (waited_ns >= LATE_NS && waited_ns < HELD_PATIENCE_NS)
		add_time_for(config, state->owners, COUNTER_LATE_GREETINGS,
			     COUNTER_LATE_GREETINGS_NS, waited_ns);
}

static __always_inline void begin_answer(struct config *config, struct socket_state *state,
					 struct sock *sk, struct tcp_sock *tp, u64 now)
{
	struct turns *turns = &state->turns;
	u32 copied_seq = READ(tp, copied_seq), turn_seq;
	bool is_certain;

	if (!turns->is_known) {
		turns->is_known = 1;
		turns->turn_seq = copied_seq;
		note_speech(&turns->pace, false, now);
		/* perhaps an answer to what was read before */
		if (READ(tp, bytes_received) && !config->slice)
			unmatched_for(config, state->owners, STAGE_APP_RESPONSE, 1);
		return;
	}
	if (turns->turn_seq == copied_seq) { /* the answer goes on, or it is unasked */
		note_unasked(config, state, tp, now);
		note_speech(&turns->pace, true, now);
		return;
	}
	end_answer(config, state, sk, tp, now);
	turn_seq = turns->turn_seq;
	turns->turn_seq = copied_seq;
	is_certain = is_read_seen(sk, turns, copied_seq) && !turns->doubt;
	if (unread_bytes(sk, tp)) { /* more of the request, or the next one */
		note_overlap(turns);
		is_certain = false;
	}
	/* else it was read outside of the time slice, or unseen */
	if (turns->read_ns && turns->read_seq != turn_seq) {
		note_pace(&turns->pace, now - turns->read_ns, now);
		end_turn(config, state, STAGE_APP_RESPONSE, is_certain, now - turns->read_ns);
	}
	note_speech(&turns->pace, false, now);
	turns->doubt = 0;
	turns->is_answer_sent = 1;
	turns->answer_seq = READ(tp, write_seq);
}

static __always_inline u64 pause_of(u64 round_trip_us)
{
	u64 pause_ns = round_trip_us * 1000 * PAUSE_ROUND_TRIPS;

	return pause_ns < PAUSE_NS ? PAUSE_NS : pause_ns;
}

/* Why a turn may be no request with one answer. */
#define IN_DOUBT 1	    /* both sides spoke at once */
#define PAUSED_BY_CLIENT 2  /* it waits for its answer all the same, from its last bytes on */
#define PAUSED_UNANSWERED 3 /* the peer had all before */

/*
 * A client sends more before any answer came. If all before was sent a while ago, this may be another
 * request, or a stream: if the peer has it, too, the two sides do not take turns. The last transmission
 * is at tcp_wstamp_ns, __tcp_transmit_skb(), net/ipv4/tcp_output.c, 4.20+. srtt has delayed ACKs in it.
 */
static __always_inline void continue_own_request(struct turns *turns, struct tcp_sock *tp, u64 now)
{
	u32 write_seq = READ(tp, write_seq);

	if (turns->doubt || READ(tp, snd_nxt) != write_seq ||
	    at_least_0(now - READ(tp, tcp_wstamp_ns)) <= pause_of(READ(tp, rtt_min.s[0].v)))
		return;
	turns->doubt = READ(tp, snd_una) == write_seq ? PAUSED_UNANSWERED : PAUSED_BY_CLIENT;
}

/* The client's own pauses were the smaller part of its wait. A stream at a steady pace has none such. */
static __always_inline bool is_mostly_the_peers(struct turns *turns, struct tcp_sock *tp, u64 now)
{
	u64 quiet_ns = at_least_0(now - READ(tp, tcp_wstamp_ns));

	return turns->doubt >= PAUSED_BY_CLIENT &&
	       quiet_ns > at_least_0(now - turns->request_ns) / 4 * 3;
}

static __always_inline void begin_request(struct config *config, struct socket_state *state,
					  struct sock *sk, struct tcp_sock *tp, u64 now)
{
	struct turns *turns = &state->turns;

	if (!turns->is_known || !is_open(config))
		return; /* it may have begun before we watched; it is not measured */
	if (turns->request_ns) {
		continue_own_request(turns, tp, now);
		return;
	}
	turns->request_ns = now;
	turns->request_seq = READ(tp, write_seq);
	turns->doubt = unread_bytes(sk, tp) ? IN_DOUBT : 0; /* the reply to another one */
	if (turns->doubt)
		note_overlap(turns);
	/* last: on_cgroup_ingress() may end it at once */
	asm volatile("" ::: "memory");
	turns->request_ns = now;
}

/* The application hands bytes to TCP. */
static __always_inline void note_write(struct config *config, struct socket_state *state,
				       struct sock *sk, struct tcp_sock *tp, u64 now)
{
	if (role_of(sk, &state->turns) == ROLE_SERVER)
		begin_answer(config, state, sk, tp, now);
	else
		begin_request(config, state, sk, tp, now);
}

/* A client's socket gets data. */
static __always_inline void end_request(struct config *config, struct socket_state *state,
					struct tcp_sock *tp, u32 ack_seq, u64 now)
{
	struct turns *turns = &state->turns;
	bool is_certain;

	turns->is_known = 1;
	if (!turns->request_ns)
		note_unasked(config, state, tp, now);
	if (!turns->request_ns || !is_after(ack_seq, turns->request_seq)) {
		/* sent before the peer saw the request: of an earlier reply, or unasked */
		note_speech(&turns->pace, true, now);
		return;
	}
	note_pace(&turns->pace, now - turns->request_ns, now);
	note_speech(&turns->pace, false, now);
	is_certain = !turns->doubt || is_mostly_the_peers(turns, tp, now);
	if (!is_certain && turns->doubt == PAUSED_UNANSWERED)
		note_overlap(turns);
	if (ack_seq != READ(tp, write_seq)) { /* before it saw the whole request */
		note_overlap(turns);
		is_certain = false;
	}
	end_turn(config, state, STAGE_PEER_RESPONSE, is_certain, now - turns->request_ns);
	turns->request_ns = 0;
	turns->doubt = 0;
}

/* A server's socket gets data. */
static __always_inline void continue_request(struct turns *turns, struct tcp_sock *tp, u32 ack_seq,
					     u64 now)
{
	u32 copied_seq = READ(tp, copied_seq);

	if (turns->is_answer_sent) {
		turns->is_answer_sent = 0;
		if (!is_after(ack_seq, turns->answer_seq))
			note_overlap(turns); /* sent before the peer saw the last answer */
	}
	if (!turns->is_known || turns->turn_seq == copied_seq || copied_seq != READ(tp, rcv_nxt) ||
	    turns->turn_seq == turns->read_seq)
		return; /* the request begins, or its beginning has not been read, or not seen to be */
	if (now - turns->read_ns > pause_of(READ(tp, srtt_us) >> 3)) {
		turns->doubt = IN_DOUBT;
		if (!turns->read_ns)
			return; /* read while no slice was open: an answer may have gone unseen */
		note_overlap(turns);
		note_wait(turns, now - turns->read_ns, 0); /* no answer was due */
	}
}

/* A segment reaches the socket, and has not changed it yet. */
static __always_inline void note_arrival(struct config *config, struct socket_state *state,
					 struct sock *sk, struct tcp_sock *tp,
					 struct incoming *incoming, u64 now)
{
	u32 expected = READ(tp, rcv_nxt);

	if (incoming->is_end)
		state->turns.is_end_late = incoming->end_seq == READ(tp, copied_seq);
	if ((!incoming->is_beside && is_after(incoming->seq, expected)) ||
	    !is_after(incoming->end_seq, expected))
		return; /* no data, data that was received before, or behind a gap */
	if (role_of(sk, &state->turns) == ROLE_SERVER)
		continue_request(&state->turns, tp, incoming->ack_seq, now);
	else
		end_request(config, state, tp, incoming->ack_seq, now);
}

/* Less may be a goodbye, which wants no answer: QUIT, TLS's close_notify, the last frames of HTTP/2. */
#define SHORTEST_REQUEST 64

/*
 * A connection ends before the first byte of an answer. An application that closes it has lost its
 * patience, so the patience here has no least time, other than that of patience_ns(). Only requests
 * that the peer's kernel has acknowledged are its own to answer.
 */
static __always_inline void end_without_answer(struct config *config, struct socket_state *state,
					       struct tcp_sock *tp, u64 request_ns, bool is_by_peer)
{
	struct turns *turns = &state->turns;
	u64 waited_ns = at_least_0(bpf_ktime_get_ns() - request_ns);
	u64 slowest_ns = (u64)(turns->past & LONGEST_ANSWER) << ANSWER_SHIFT;
	u32 answers = turns->past >> ANSWER_BITS;

	if (config->slice || turns->doubt || is_multiplex(turns) ||
	    READ(tp, write_seq) - turns->request_seq < SHORTEST_REQUEST)
		return; /* with time slices an answer may have come unseen */
	if (is_by_peer || !answers)
		add_time_for(config, state->owners, COUNTER_REQUESTS_UNANSWERED,
			     COUNTER_REQUESTS_UNANSWERED_NS, waited_ns);
	else if (answers >= ANSWERS_OF_A_PAST && waited_ns > PATIENCE_FACTOR * slowest_ns &&
		 (slowest_ns < HELD_ANSWER_NS || waited_ns > HELD_PATIENCE_NS) &&
		 READ(tp, snd_una) == READ(tp, write_seq))
		add_time_for(config, state->owners, COUNTER_REQUESTS_ABANDONED,
			     COUNTER_REQUESTS_ABANDONED_NS, waited_ns);
}

/*
 * One side closes. A half-closed client's replies reach it past tcp_probe, tcp_rcv_state_process().
 * close() has ended both directions: __tcp_close(), net/ipv4/tcp.c. on_cgroup_ingress() takes no lock,
 * and may end the request at the same time.
 */
static __always_inline void end_requests(struct config *config, struct socket_state *state,
					 struct sock *sk, bool is_by_peer)
{
	u64 request_ns = *(volatile u64 *)&state->turns.request_ns;
	struct tcp_sock *tp = get_tcp_sock(sk);

	if (!request_ns)
		return;
	if (READ(sk, sk_shutdown) & RCV_SHUTDOWN) {
		if (tp)
			end_without_answer(config, state, tp, request_ns, is_by_peer);
	} else {
		unmatched_for(config, state->owners, STAGE_PEER_RESPONSE, 1);
	}
	state->turns.request_ns = 0;
}

/* A client gives up a connection without a byte in either direction, or it was a spare one. */
static __always_inline void note_no_data(struct config *config, struct socket_state *state,
					 struct tcp_sock *tp, u64 now)
{
	u64 began_ns = state->turns.read_ns, open_ns = at_least_0(now - began_ns);

	if (began_ns && open_ns >= LEAST_PATIENCE_NS && open_ns < HELD_PATIENCE_NS &&
	    !IS_OF_MPTCP(READ, tp))
		add_time_for(config, state->owners, COUNTER_CONNECTIONS_WITHOUT_DATA,
			     COUNTER_CONNECTIONS_WITHOUT_DATA_NS, open_ns);
}

/*
 * When data came or left last; what left had its ACK. tcp_wstamp_ns would be that of an ACK or of a
 * keep-alive probe, too: __tcp_transmit_skb(), net/ipv4/tcp_output.c.
 */
static __always_inline u64 last_data_ns(struct socket_path *path, struct tcp_sock *tp)
{
	u64 sent_ns = READ(tp, rack.mstamp) * 1000, came_ns = path->data_ns;

	return sent_ns > came_ns ? sent_ns : came_ns;
}

/*
 * The server ends a connection: late, if that is long after the last byte, where a client may wait for
 * the end of its only answer. After a second it is mostly an idle connection that ends, and so it is if
 * the client has asked more than once: it does not read to the end. Without selective ACKs it is not
 * known when data left, as in end_answer().
 */
static __always_inline void note_late_end(struct config *config, struct socket_state *state,
					  struct sock *sk, bool is_by_peer)
{
	bool is_client = role_of(sk, &state->turns) == ROLE_CLIENT;
	u64 now = bpf_ktime_get_ns(), quiet_ns;
	struct tcp_sock *tp = get_tcp_sock(sk);
	struct socket_path *path;

	if (!tp || config->slice || state->turns.request_ns)
		return;
	if (!READ(tp, bytes_received) && !READ(tp, bytes_sent)) {
		if (is_client && !is_by_peer)
			note_no_data(config, state, tp, now);
		return;
	}
	path = look_up_socket_path(sk);
	if (is_by_peer != is_client || state->turns.past >> ANSWER_BITS != 1 || !path ||
	    !path->data_ns || !READ(tp, rack.mstamp) || READ(tp, snd_una) != READ(tp, write_seq) ||
	    IS_OF_MPTCP(READ, tp))
		return;
	quiet_ns = at_least_0(now - last_data_ns(path, tp));
	if (quiet_ns >= LATE_NS && quiet_ns < LEAST_PATIENCE_NS)
		add_time_for(config, state->owners, COUNTER_LATE_ENDS, COUNTER_LATE_ENDS_NS,
			     quiet_ns);
}
