/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tcp: what loss costs, in time.
 *
 *   first transmission of the oldest unacknowledged bytes --tcp.recovery--> their ACK
 *
 * An *episode* begins with the first segment that is sent again, by whatever found the loss: the
 * retransmission timer, a tail loss probe or duplicate ACKs. It ends when all is acknowledged that was
 * sent until then, as the kernel's own recovery does (tp->high_seq), or with the connection. A connection
 * has one at a time.
 *
 * No packet pays for it but those of a socket in an episode: `recovering` is 0 in all others.
 */

/* Of `recovering`: */
#define IN_RECOVERY 255
#define REPEATED_HANDSHAKE 254 /* to be recorded, see end_recovery() */
/* After an episode, so many segments may report that it was needless: a round trip's. */
#define SEGMENTS_AFTER 16

static __always_inline struct recovery *get_recovery(struct sock *sk)
{
	struct recovery *recovery = look_up_recovery(sk);

	return recovery ? recovery : create_recovery(sk);
}

#ifdef HAVE_kfree_skb_reason

/*
 * How often this node dropped a segment with data, or a SYN, until it is sent again: by the socket that sent
 * it, and by its first byte. Its next transmission begins with that, too: what was acknowledged by then is
 * cut off, also by SACK. See notes.h: the recovery of a note that was lost has no known cause.
 */
NOTE_TABLE(dropped_segments);
#define MOST_DROPPED_PIECES 8 /* of one retransmission */

static __always_inline struct note_set *dropped_at(struct config *config, owners_t owners, u64 tag)
{
	u32 number = set_of_note(config, owners, tag);

	return (struct note_set *)dropped_segments.lookup(&number);
}

/* `sender`: the identity of the socket that sent it, see identity_of(). */
static __always_inline void note_dropped(struct config *config, owners_t owners, u64 sender,
					 u32 seq)
{
	u64 tag = tag_of_note(sender, seq), place;
	struct note_set *set = dropped_at(config, owners, tag);

	if (!set)
		return;
	place = place_of_note(set, tag);
	write_note(set, place, tag, value_of_note(set, place) + 1);
}

/*
 * How often this node dropped a segment that was sent again. What is dropped at once, as by a veth device's
 * other end, is noted before its transmission is: that drop counts with those before it.
 */
static __always_inline u64 take_drops(struct config *config, owners_t owners, struct sock *sk,
				      u32 seq)
{
	u64 tag = tag_of_note(identity_of(sk, config), seq), place, drops;
	struct note_set *set = dropped_at(config, owners, tag);

	if (!set)
		return 0;
	place = place_of_note(set, tag);
	drops = value_of_note(set, place);
	erase_note(set, place);
	return drops;
}

/* The same of all that begins in a retransmission: GSO in software may have cut it before it was dropped. */
static __always_inline u64 take_all_drops(struct config *config, owners_t owners, struct sock *sk,
					  struct tcp_sock *tp, u32 seq, u32 end)
{
	u32 mss = READ(tp, mss_cache), at = seq;
	u64 drops = 0;
	int i;

#pragma unroll
	for (i = 0; i < MOST_DROPPED_PIECES; i++, at += mss)
		if (is_after(end, at))
			drops += take_drops(config, owners, sk, at);
	return drops;
}

#else

static __always_inline u64 take_drops(struct config *config, owners_t owners, struct sock *sk,
				      u32 seq)
{
	return 0;
}

static __always_inline u64 take_all_drops(struct config *config, owners_t owners, struct sock *sk,
					  struct tcp_sock *tp, u32 seq, u32 end)
{
	return 0;
}

#endif

/* Levels of a red-black tree: of more than 4,000 segments. */
#define RTX_LEVELS 24

/* tcp_rtx_queue_head(), include/net/tcp.h: the segment that has waited for its ACK longest; or NULL. */
static __always_inline struct sk_buff *first_unacknowledged(struct sock *sk)
{
	struct rb_node *node = PEEK(sk, tcp_rtx_queue.rb_node), *left;
	int level;

#pragma unroll
	for (level = 0; level < RTX_LEVELS; level++) {
		if (!node)
			return 0;
		left = PEEK(node, rb_left);
		if (!left)
			return (struct sk_buff *)node; /* `rbnode` is its first member */
		node = left;
	}
	return 0;
}

/*
 * When a segment was sent first; 0: it was sent again since, and nothing has the first time. `repeated`: the
 * segment that was just sent again, if any. The kernel says so in `sacked` before tcp_retransmit_skb or
 * after it: __tcp_retransmit_skb(), net/ipv4/tcp_output.c
 */
static __always_inline u64 first_transmission(struct sk_buff *skb, struct sk_buff *repeated)
{
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)((u64)skb + offsetof(struct sk_buff, cb));

	if ((u64)skb == (u64)repeated || PEEK(cb, sacked) & TCPCB_EVER_RETRANS)
		return 0;
	return PEEK(skb, skb_mstamp_ns);
}

/*
 * tcp_set_ca_state(), net/ipv4/tcp_cong.c, 5.19+: from tcp_enter_loss() and tcp_enter_recovery(), before
 * anything is sent again and the segment's time with it.
 */
int on_tcp_cong_state_set(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct config *config = get_config();
	u32 ca_state = (u8)ctx[1];
	struct socket_state *state;
	struct recovery *recovery;
	struct sk_buff *skb;
	struct tcp_sock *tp;

	if (!config || (ca_state != TCP_CA_Recovery && ca_state != TCP_CA_Loss))
		return 0;
	state = find_state(sk);
	if (!state || state->recovering == IN_RECOVERY)
		return 0;
	tp = get_tcp_sock(sk);
	skb = first_unacknowledged(sk);
	recovery = get_recovery(sk);
	if (!tp || !skb || !recovery)
		return 0;
	recovery->noted_ns = first_transmission(skb, 0);
	recovery->noted_seq = READ(tp, snd_una);
	return 0;
}

/*
 * When the oldest bytes without an ACK were sent. Without a note of it, and if the oldest segment is the
 * one that was just sent again, it is the time of which the kernel takes its rates: that of the first
 * segment in flight, or of one that was sent beside the oldest. tcp_rate_skb_sent() and
 * tcp_rate_skb_delivered(), net/ipv4/tcp_rate.c
 */
static __always_inline u64 begin_of_waiting(struct sock *sk, struct tcp_sock *tp,
					    struct recovery *recovery, struct sk_buff *repeated,
					    u64 now)
{
	struct sk_buff *first;
	u64 sent_ns = 0;

	if (recovery->noted_seq == READ(tp, snd_una))
		sent_ns = recovery->noted_ns;
	recovery->noted_ns = 0;
	first = sent_ns ? 0 : first_unacknowledged(sk);
	if (first)
		sent_ns = first_transmission(first, repeated);
	if (!sent_ns)
		sent_ns = READ(tp, first_tx_mstamp) * 1000;
	/* paced segments have the time of their departure, which may be to come */
	return sent_ns && sent_ns < now ? sent_ns : now;
}

/* The end of the data that was sent, without a FIN. */
static __always_inline u32 sent_end(struct sock *sk, struct tcp_sock *tp)
{
	u32 states = 1U << TCP_FIN_WAIT1 | 1U << TCP_CLOSING | 1U << TCP_LAST_ACK;
	u32 state = READ(sk, __sk_common.skc_state), end = READ(tp, snd_nxt);

	return (1U << state) & states && end == READ(tp, write_seq) ? end - 1 : end;
}

/*
 * An episode ends; `is_end_seen`: now. Or a connection stood whose SYN-ACK was sent more than once: that is
 * recorded with the next event of its socket, since then its owner is known, and the programs that see it
 * stand need no more code.
 */
static __always_inline void end_recovery(struct config *config, struct socket_state *state,
					 struct recovery *recovery, bool is_end_seen)
{
	u64 ns = recovery->begin_ns;

	if (state->recovering == IN_RECOVERY)
		ns = is_end_seen ? bpf_ktime_get_ns() - ns : 0;
	else if (state->is_candidate)
		return;
	else
		count_for(config, state->owners, COUNTER_HANDSHAKE_RETRANSMITS);
	if (ns && state->recovering == IN_RECOVERY && recovery->drops)
		add_both_for(config, state->owners, COUNTER_DROPPED_AND_RESENT, recovery->drops,
			     COUNTER_DROPPED_AND_RESENT_NS, ns);
	if (ns)
		record_long_for(config, state->owners, STAGE_TCP_RECOVERY, ns);
	else if (!config->slice)
		unmatched_for(config, state->owners, STAGE_TCP_RECOVERY, 1);
	state->recovering = SEGMENTS_AFTER;
}

/*
 * What the peer had already, as it says (RFC 2883): tcp_dsack_seen(), net/ipv4/tcp_input.c, 4.20+. It says so
 * once for what was sent again at once, which may be many segments, as tcp_retransmit_skb happens once for it.
 */
static __always_inline void note_duplicates(struct config *config, struct socket_state *state,
					    struct tcp_sock *tp, struct recovery *recovery)
{
	u32 duplicates = READ(tp, dsack_dups);

	if (duplicates != recovery->duplicates)
		count_for(config, state->owners, COUNTER_SPURIOUS_RETRANSMITS);
	recovery->duplicates = duplicates;
}

/* A connection stands whose SYN was sent more than once, after this time. */
static __always_inline void note_repeated_syn(struct config *config, struct socket_state *state,
					      struct sock *sk, struct tcp_sock *tp, u64 ns)
{
	u64 drops = take_drops(config, state->owners, sk, READ(tp, snd_una) - 1);

	if (drops)
		add_both_for(config, state->owners, COUNTER_DROPPED_AND_RESENT, drops,
			     COUNTER_DROPPED_AND_RESENT_NS, ns);
}

/* A segment was sent again. SYN and FIN alone carry no data for which a process waits. */
static __always_inline void note_repetition(struct config *config, struct socket_state *state,
					    struct recovery *recovery, struct sock *sk,
					    struct tcp_sock *tp, struct sk_buff *skb)
{
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)skb->cb;
	u32 end = sent_end(sk, tp), repeated = READ(cb, end_seq);
	u64 drops;

	if (!READ(skb, len))
		return;
	drops = take_all_drops(config, state->owners, sk, tp, READ(cb, seq), repeated);
	if (state->recovering == IN_RECOVERY && is_after(recovery->end_seq, READ(tp, snd_una))) {
		recovery->drops += drops;
		if (is_after(repeated, recovery->end_seq) && !is_after(repeated, end))
			recovery->end_seq = repeated; /* and more is lost */
		return;
	}
	if (state->recovering > SEGMENTS_AFTER)
		end_recovery(config, state, recovery, false);
	if (state->recovering)
		note_duplicates(config, state, tp, recovery);
	recovery->duplicates = READ(tp, dsack_dups);
	recovery->begin_ns = begin_of_waiting(sk, tp, recovery, skb, bpf_ktime_get_ns());
	recovery->end_seq = end;
	recovery->drops = drops;
	/* last: on_cgroup_ingress() may end it at once */
	asm volatile("" ::: "memory");
	state->recovering = IN_RECOVERY;
}

/* A segment reaches a socket that sent some again, and has not changed it yet. */
static __always_inline void follow_recovery(struct config *config, struct sock *sk,
					    struct socket_state *state, struct tcp_sock *tp,
					    u32 ack_seq)
{
	struct recovery *recovery = look_up_recovery(sk);

	if (!recovery) { /* by LRU */
		state->recovering = 0;
		return;
	}
	note_duplicates(config, state, tp, recovery);
	if (state->recovering <= SEGMENTS_AFTER)
		state->recovering--;
	else if (state->recovering == REPEATED_HANDSHAKE || !is_after(recovery->end_seq, ack_seq))
		end_recovery(config, state, recovery,
			     is_after(recovery->end_seq, READ(tp, snd_una)));
}

/*
 * A connection gives up, or our FIN is acknowledged, and so is all before it. tcp_probe does not see the ACKs
 * of a socket that is not established. What directly precedes the FIN was acknowledged with it; when
 * anything before was, is not known. The owners stay as they are: a lookup of them costs the verifier
 * more than all the rest, and a change of targets at this moment is rare.
 */
static __always_inline void close_recovery(struct config *config, struct sock *sk)
{
	struct socket_state *state = find_state(sk);
	struct recovery *recovery;
	struct tcp_sock *tp;

	if (!state || !state->recovering || state->generation != config->generation)
		return;
	tp = get_tcp_sock(sk);
	recovery = look_up_recovery(sk);
	if (!tp || !recovery)
		return;
	note_duplicates(config, state, tp, recovery);
	if (state->recovering > SEGMENTS_AFTER)
		end_recovery(config, state, recovery,
			     is_after(recovery->end_seq + 2, READ(tp, snd_una)));
}

/*
 * Passive opens whose SYN-ACK was sent again, from tcp_rtx_synack(), net/ipv4/tcp_output.c, until the
 * connection stands: by the number of the SYN-ACK and the ports, the time when it was sent first. Most
 * never stand, so these are notes; a handshake whose note was lost is unmatched. They are in parts by their
 * network namespace, since whose they are is not known yet: of 16 each, for those of one round trip.
 */
#define HANDSHAKE_PART_BITS 8 /* namespaces whose numbers have equal low bits share a part */
#define HANDSHAKE_SET_BITS 2
BPF_ARRAY(repeated_handshakes, struct note_set_bytes,
	  1 << (HANDSHAKE_PART_BITS + HANDSHAKE_SET_BITS));

static __always_inline struct note_set *handshakes_at(struct sock *sk, u64 tag)
{
	u32 part = netns_of_socket(sk) & ((1 << HANDSHAKE_PART_BITS) - 1);
	u32 number = part << HANDSHAKE_SET_BITS | tag >> (63 - HANDSHAKE_SET_BITS);

	return (struct note_set *)repeated_handshakes.lookup(&number);
}

int on_tcp_retransmit_synack(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct tcp_request_sock *request = (struct tcp_request_sock *)ctx[1];
	struct config *config = get_config();
	struct netns_entry *netns;
	struct note_set *set;
	u64 tag, sent_ns;

	if (!config)
		return 0;
	netns = find_netns(config, netns_of_socket(sk));
	if (!netns || !(netns->flags & NETNS_WATCHED))
		return 0;
	tag = tag_of_note(PEEK(request, snt_isn) + 1,
			  PEEK(request, req.req.__req_common.skc_portpair));
	sent_ns = PEEK(request, snt_synack) * 1000; /* microseconds of CLOCK_MONOTONIC */
	set = handshakes_at(sk, tag);
	if (set)
		write_note(set, place_of_note(set, tag), tag, sent_ns);
	return 0;
}

/* A connection stands whose SYN-ACK was sent more than once. */
static __always_inline void end_repeated_handshake(struct sock *sk, struct socket_state *state,
						   struct tcp_sock *tp)
{
	u64 tag = tag_of_note(READ(tp, snd_una), READ(sk, __sk_common.skc_portpair)), place,
	    sent_ns;
	struct note_set *set = handshakes_at(sk, tag);
	struct recovery *recovery = get_recovery(sk);

	if (!set)
		return;
	place = place_of_note(set, tag);
	sent_ns = value_of_note(set, place);
	erase_note(set, place);
	if (recovery) {
		recovery->begin_ns = sent_ns ? at_least_0(state->established_ns - sent_ns) : 0;
		state->recovering = REPEATED_HANDSHAKE;
	}
}
