/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tcp: packets that the targets' sockets lose, and the reasons.
 */

#ifdef HAVE_kfree_skb_reason

/* Because the socket's own queue or the protocol's memory is full. */
static __always_inline bool is_queue_overflow(u32 reason)
{
	return reason == DROP_SOCKET_RCVBUFF || reason == DROP_SOCKET_BACKLOG ||
	       reason == DROP_PROTO_MEM || reason == DROP_TCP_OFO_QUEUE_PRUNE ||
	       reason == DROP_TCP_OFO_DROP;
}

static __always_inline void drop_for(struct config *config, owners_t owners, u32 reason)
{
	u64 index = reason < NR_DROP_REASONS ? reason : NR_DROP_REASONS - 1;

	for (; owners; owners >>= OWNER_BITS) {
		struct slot_stats *slot = get_stats(config, first_slot(owners));

		asm volatile("" : "+r"(index)); /* as in record() */
		if (slot && index < NR_DROP_REASONS)
			__sync_fetch_and_add(&slot->drops[index], 1);
	}
}

/*
 * A closed socket frees the packets in its queues: no drop. A packet without a reason is none
 * either.
 */
static __always_inline bool is_drop(u32 reason)
{
	return reason > DROP_NOT_SPECIFIED && reason != DROP_QUEUE_PURGE &&
	       reason != DROP_SOCKET_CLOSE;
}

#ifdef HAVE_kfree_skb_rx_sk

/* sk_skb_reason_drop(), net/core/skbuff.c; a sent packet has its socket in skb->sk */
int on_kfree_skb(u64 *ctx)
{
	u32 reason = ctx[2];
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct sock *sk = (struct sock *)ctx[3];
	struct config *config;
	struct socket_state *state;
	struct turned_away away;
	owners_t owners;

	if (!is_drop(reason))
		return 0;
	if (!sk)
		sk = READ(skb, sk);
	config = get_config();
	if (!sk || !config || !is_full(sk) || !protocol_of(sk))
		return 0;
	state = get_state(sk, config, &away);
	owners = state ? state->owners : away.owners;
	if (!owners && !state)
		return 0;
	/* read again: the verifier would follow all above for each reason that was distinguished */
	reason = *(volatile u64 *)&ctx[2];
	drop_for(config, owners, reason);
	if (is_queue_overflow(reason))
		count_for(config, owners, COUNTER_RECEIVE_QUEUE_OVERFLOWS);
	if (state && !config->reads_listeners && is_listener(sk))
		note_listener_drops(config, sk, state);
	return 0;
}

#else

/* kfree_skb_reason(), net/core/skbuff.c, 5.17 to 6.10: the socket is known of sent packets only */
int on_kfree_sent(u64 *ctx)
{
	u32 reason = ctx[2];
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct sock *sk = is_drop(reason) ? READ(skb, sk) : 0;
	struct config *config = get_config();

	if (sk && config && is_full(sk) && protocol_of(sk))
		drop_for(config, get_owners(sk, config), reason);
	return 0;
}

#endif

#endif

#ifndef HAVE_kfree_skb_rx_sk

/* __udp_queue_rcv_skb(), net/ipv4/udp.c, net/ipv6/udp.c: for kernels whose kfree_skb names no socket */
int on_udp_fail_queue(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[1];
	struct config *config = get_config();

	if (config)
		count_for(config, get_owners(sk, config), COUNTER_RECEIVE_QUEUE_OVERFLOWS);
	return 0;
}

#endif
