/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Modules rx and tx together: queries by datagrams, as of DNS. A client's datagram that waits for a reply, and
 * the next datagram from there.
 *
 * UDP says neither who asks nor what a reply belongs to. So:
 *
 *   - A socket that sends first is a client's, one that receives first is a server's.
 *   - A datagram with the first two bytes of a query is its reply: DNS and others repeat an id there.
 *     Where the socket never got such a reply, one ends all queries to that peer, the oldest of which
 *     is the sample. A socket that is bound to a port may be a server's whose first datagram was not
 *     seen, so there only an id counts.
 *   - A query that has the same content as one without a reply is that one, sent again: with another id
 *     on the same socket, or on another socket.
 *   - What is sent to a peer that never replied to this target is no query: it may be a metric or a log.
 *     The port of DNS is an exception.
 *   - Queries of DNS are counted, and those that end: the others have no reply, also if their socket was
 *     closed. A reply ends all that its socket has asked. A resolver that asks several servers at once
 *     wants one reply; such queries count as ended.
 *   - A question that its socket asks again, half a second later or more, was waited for: so it counts
 *     apart, with the time until then. A socket of its own for each attempt may have other reasons.
 *   - A reply that no reader waits for lies in its socket until that is used again. It counts apart: the
 *     query that was answered last is answered again. Or the query was a second old, and its socket sends
 *     again before the reply is read.
 *   - A server's datagram with the first two bytes of one that it read from this peer is the answer to it
 *     (module tcp, too). Bytes that soon come again, or after an answer, are no id: a stream has such.
 *
 * No lock is held: two threads that use one socket at the same time may lose a query.
 */

#if TYPED && defined(MODULE_TX) && defined(WITH_ON_SK_DATA_READY) && \
	defined(WITH_ON_SOCK_RECV_LENGTH) && defined(HAVE_sock_recv_length_sk)
#define WITH_QUERIES 1

#define ASKS 1
#define ANSWERS 2

#define REPEAT_NS 500000000ULL /* an equal query before that is another one, of another thread */
#define SENT_SHIFT 24	       /* 17 ms: 18 minutes in 16 bits */
#define GIVEN_UP_NS 30000000000ULL
#define MOST_UNANSWERED 16   /* of one socket to peers that never reply: then it is a stream */
#define CONTENT_BYTES 48     /* of a question, behind its id */
#define SOCK_BINDPORT_LOCK 8 /* include/uapi/linux/net.h */
#define PORT_OF_DNS 53

/* The peers that have replied to a target, and its queries without a reply: see notes.h. */
NOTE_TABLE(repliers);
NOTE_TABLE(asked);

/* A datagram of UDP, by its headers. */
struct datagram {
	u32 peer;
	u32 length; /* of its payload */
	u16 id;
	u16 peer_port;
};

/* Of both versions of IP without a branch: see choose(). */
static __always_inline u32 peer_of(u16 protocol, unsigned char *network, u16 port, bool is_sent)
{
	u64 is_ipv4 = is_equal(protocol, bpf_htons(ETH_P_IP)), content;
	u32 address[4] = {}, rest = is_ipv4 - 1;

	bpf_probe_read_kernel(address, sizeof(address),
			      network + (is_sent ? 24 - 8 * is_ipv4 : 8 + 4 * is_ipv4));
	content = mix(port, (u64)address[0] << 32 | (address[1] & rest));
	content = mix(content, (u64)(address[2] & rest) << 32 | (address[3] & rest));
	return content >> 32 | 1;
}

static __always_inline u32 question_of(unsigned char *payload, u32 length)
{
	u64 bytes[CONTENT_BYTES / sizeof(u64)] = {}, content = mix(IPPROTO_UDP, length);
	u32 i, known = length < 2 ? 0 : length - 2;

	if (known > CONTENT_BYTES)
		known = CONTENT_BYTES;
	asm volatile("" : "+r"(known));
	if (known <= CONTENT_BYTES)
		bpf_probe_read_kernel(bytes, known, payload + 2);
#pragma unroll
	for (i = 0; i < CONTENT_BYTES / sizeof(u64); i++)
		content = mix(content, bytes[i]);
	return content >> 32 | 1;
}

static __always_inline struct datagram parse_datagram(u16 protocol, unsigned char *network,
						      unsigned char *transport, bool is_sent)
{
	struct datagram datagram = {};
	struct {
		u16 ports[2];
		u16 length;
		u16 checksum;
		u16 id;
	} header = {};

	bpf_probe_read_kernel(&header, sizeof(header), transport);
	datagram.peer_port = header.ports[is_sent ? 1 : 0];
	datagram.peer = peer_of(protocol, network, datagram.peer_port, is_sent);
	datagram.id = header.id;
	datagram.length = (u16)(bpf_ntohs(header.length) - 8);
	return datagram;
}

static __always_inline struct datagram parse_received(struct sk_buff *skb)
{
	unsigned char *head = PEEK(skb, head);

	return parse_datagram(PEEK(skb, protocol), head + PEEK(skb, network_header),
			      head + PEEK(skb, transport_header), false);
}

static __always_inline struct note_set *repliers_at(struct config *config, owners_t owners, u64 tag)
{
	u32 number = set_of_note(config, owners, tag);

	return (struct note_set *)repliers.lookup(&number);
}

static __always_inline struct note_set *asked_at(struct config *config, owners_t owners, u64 tag)
{
	u32 number = set_of_note(config, owners, tag);

	return (struct note_set *)asked.lookup(&number);
}

static __always_inline bool has_replied(struct config *config, owners_t owners, u32 peer)
{
	u64 tag = tag_of_note(owners, peer);
	struct note_set *set = repliers_at(config, owners, tag);

	return set && is_note(place_of_note(set, tag));
}

static __always_inline void note_replier(struct config *config, owners_t owners, u32 peer, u64 now)
{
	u64 tag = tag_of_note(owners, peer);
	struct note_set *set = repliers_at(config, owners, tag);

	if (set)
		write_note(set, place_of_note(set, tag), tag, now);
}

static __always_inline u64 question_tag(owners_t owners, u32 peer, u32 content)
{
	return tag_of_note(owners, (u64)content << 32 | peer);
}

/* Since when this question has had no reply, on whatever socket; `now` if it is a new one. */
static __always_inline u64 first_asked(struct config *config, owners_t owners, u32 peer,
				       u32 content, u64 now)
{
	u64 tag = question_tag(owners, peer, content), place, since, age;
	struct note_set *set = asked_at(config, owners, tag);

	if (!set)
		return now;
	place = place_of_note(set, tag);
	since = value_of_note(set, place);
	age = now - since;
	if (since && age > REPEAT_NS && age < GIVEN_UP_NS)
		return since;
	write_note(set, place, tag, now);
	return now;
}

/* It has a reply, or waits for none from this peer. */
static __always_inline void forget_asked(struct config *config, owners_t owners, u32 peer,
					 u32 content)
{
	u64 tag = question_tag(owners, peer, content);
	struct note_set *set = asked_at(config, owners, tag);

	if (set)
		erase_note(set, place_of_note(set, tag));
}

/*
 * The loops over a socket's queries have no branch: see choose(). A place is the number of an element
 * plus 1; 0: none.
 */
static __always_inline u64 keep_place(u64 place, u64 is_wanted, u32 number)
{
	u64 mask = 0 - is_wanted;

	asm volatile("" : "+r"(mask));
	return place ^ ((place ^ (number + 1)) & mask);
}

static __always_inline volatile struct query *query_at(struct socket_queue *queue, u64 place)
{
	return &queue->queries[(place - 1) & (FEW_HANDOFFS - 1)];
}

/* 1 of a query that may have a reply; 0: there is none, or it was given up. */
static __always_inline u64 is_asked(struct config *config, volatile struct query *query, u64 now)
{
	u64 asked_ns = query->asked_ns;

	return is_below_0(-asked_ns) & is_below_0(now - asked_ns - GIVEN_UP_NS) &
	       is_equal(query->slice, (u16)config->slice);
}

/* 1 if the query is the same, sent again; then it may have another id. */
static __always_inline u64 is_repeated(volatile struct query *query, struct datagram *datagram,
				       u32 content, u64 now)
{
	u64 asked_ns = query->asked_ns;

	return is_equal(query->peer, datagram->peer) & is_equal(query->content, content) &
	       (is_equal(query->id, datagram->id) | is_below_0(REPEAT_NS - (now - asked_ns)));
}

/* A socket's datagrams have no replies: what it sends are no queries, until something comes. */
static __always_inline void note_unanswered(struct socket_queue *queue)
{
	if (queue->dialogue.unanswered < MOST_UNANSWERED)
		queue->dialogue.unanswered++;
}

static __always_inline bool is_stream(struct socket_queue *queue)
{
	return queue->dialogue.unanswered >= MOST_UNANSWERED;
}

/*
 * The label of a client's datagram. LATE: resolvers give up after a second or more. The number of datagrams
 * that the socket had sent is added, to see whether it sends again before this one is read.
 */
#define SPARE 1
#define LATE 2
#define LATE_REPLY_NS 1000000000ULL
#define MOST_SPARES 3 /* of a query; more are no second replies, but a stream */

static __always_inline void label_last_segment(struct config *config, struct sock *sk,
					       struct socket_state *state,
					       struct socket_queue *queue, u32 label)
{
	struct segment_ring *ring = find_segment_ring(config, sk, state, queue);

	segment_at(queue, ring, queue->tail - 1)->end_seq = label;
}

#ifdef MODULE_TCP

/* The questions that a target has read, by their label: when that was. See notes.h. */
NOTE_TABLE(questions);
#define NO_QUESTION 1 /* instead of a time: it was answered, or has no id */

/* Of its peer and id; never 0. */
static __always_inline u32 label_of(struct datagram *datagram)
{
	return mix(datagram->peer, datagram->id) >> 32 | 1;
}

static __always_inline struct note_set *questions_at(struct config *config, owners_t owners,
						     u64 tag)
{
	u32 number = set_of_note(config, owners, tag);

	return (struct note_set *)questions.lookup(&number);
}

/* A server reads a datagram with this label. */
static __always_inline void begin_question(struct config *config, owners_t owners, u32 label,
					   u64 now)
{
	u64 tag = tag_of_note(owners, label), place, room, known, since = now, age, is_lost;
	volatile struct note_set *set = questions_at(config, owners, tag);

	if (!set)
		return;
	place = place_of_note(set, tag);
	known = value_of_note(set, place);
	age = now - known;
	if (known) {
		if (known == NO_QUESTION || age < REPEAT_NS)
			since = NO_QUESTION;
		else if (age < GIVEN_UP_NS)
			since = known;
	}
	/* An answered one makes room first. Else the oldest is lost, which may still be answered. */
	room = place_of_note(set, 0);
	room = choose(is_note(room), room, place_of_value(set, NO_QUESTION));
	room = choose(is_note(place), place, room);
	is_lost = (is_note(room) ^ 1) & is_below_0(now - set->values[NOTES - 1] - GIVEN_UP_NS);
	write_note(set, room, tag, since);
	if (is_lost)
		unmatched_for(config, owners, STAGE_APP_RESPONSE, 1);
	end_branch();
}

/* A server sends a datagram. */
static __always_inline void end_question(struct config *config, struct socket_state *state,
					 struct datagram *datagram, u64 now)
{
	u64 tag = tag_of_note(state->owners, label_of(datagram)), place, since;
	struct note_set *set = questions_at(config, state->owners, tag);

	if (!set)
		return;
	place = place_of_note(set, tag);
	since = value_of_note(set, place);
	if (!since)
		return;
	set->values[index_of_note(place)] = NO_QUESTION;
	if (since != NO_QUESTION)
		record_for(config, state->owners, STAGE_APP_RESPONSE, now - since);
}

/* The last one of a socket's queue, or of the queue where a reader moves all; NULL: it was read. */
static __always_inline struct sk_buff *last_queued(struct sock *sk)
{
	struct sk_buff_head *of_reader = &((struct udp_sock *)sk)->reader_queue;
	struct sk_buff *skb = PEEK(&sk->sk_receive_queue, prev);

	if (skb != (struct sk_buff *)&sk->sk_receive_queue)
		return skb;
	skb = PEEK(of_reader, prev);
	return (u64)skb == (u64)of_reader ? 0 : skb;
}

/* Of the datagram that came to a server, for the read; 0: it was read. */
static __always_inline u32 label_last(struct sock *sk)
{
	struct sk_buff *skb = last_queued(sk);
	struct datagram datagram;

	if (!skb)
		return 0;
	datagram = parse_received(skb);
	return label_of(&datagram);
}

#endif

/* 1 if queries of DNS are counted: each of them is seen. */
static __always_inline u64 are_counted(struct config *config)
{
	return is_equal(config->slice, 0) & is_equal(config->sample_mask, 0) &
	       is_equal(config->sees_departures, 0);
}

/* A socket asks the same again. Of servers that are asked at once, one reply is enough. */
static __always_inline void repeat_query(struct config *config, struct socket_state *state,
					 volatile struct query *query, u64 now)
{
	u16 at = now >> SENT_SHIFT, passed = at - query->sent_at;
	u64 waited_ns = (u64)passed << SENT_SHIFT, is_first = query->is_repeated ^ 1;

	if (!query->is_dns || query->is_twin || waited_ns < REPEAT_NS || !are_counted(config))
		return;
	query->sent_at = at;
	query->is_repeated = 1;
	add_both_for(config, state->owners, COUNTER_DNS_QUERIES_REPEATED, is_first,
		     COUNTER_DNS_QUERIES_REPEATED_NS, waited_ns);
}

/* A datagram leaves a socket. */
static __always_inline void note_query(struct config *config, struct sock *sk,
				       struct socket_state *state, u16 protocol,
				       unsigned char *network, unsigned char *transport)
{
	struct socket_queue *queue = get_queue(sk, state);
	u64 now = bpf_ktime_get_ns();
	volatile struct query *query, *last;
	struct datagram datagram;
	u64 free = 0, same = 0, asked_before, asked_ns, is_twin;
	u64 is_counted, is_new, is_ended;
	bool is_known;
	u32 i, content;

	if (!queue) {
		lost_for(config, state->owners, STAGE_UDP_RESPONSE);
		return;
	}
	if (!queue->dialogue.role)
		queue->dialogue.role = ASKS;
	queue->dialogue.sent++;
	if (is_stream(queue))
		return;
	datagram = parse_datagram(protocol, network, transport, true);
	if (queue->dialogue.role != ASKS) {
#ifdef MODULE_TCP
		end_question(config, state, &datagram, now);
#endif
		return;
	}
	content = question_of(transport + 8, datagram.length);
#pragma unroll
	for (i = 0; i < FEW_HANDOFFS; i++) {
		query = &queue->queries[i];
		asked_before = is_asked(config, query, now);
		free = keep_place(free, asked_before ^ 1, i);
		same = keep_place(same, asked_before & is_repeated(query, &datagram, content, now),
				  i);
	}
	if (same) {
		query = query_at(queue, same);
		query->id = datagram.id;
		repeat_query(config, state, query, now);
		return;
	}
	is_known = datagram.peer_port == bpf_htons(PORT_OF_DNS) ||
		   has_replied(config, state->owners, datagram.peer);
	if (!is_known)
		note_unanswered(queue);
	if (!free) {
		if (queue->dialogue.has_ids)
			lost_for(config, state->owners, STAGE_UDP_RESPONSE);
		return;
	}
	query = query_at(queue, free);
	if (query->asked_ns && query->slice == (u16)config->slice && query->is_known)
		unmatched_for(config, state->owners, STAGE_UDP_RESPONSE, 1);
	/* the last query, to another server */
	last = query_at(queue, queue->dialogue.last_place);
	is_twin = is_asked(config, last, now) & is_equal(last->id, datagram.id) &
		  is_equal(last->content, content);
	is_ended = is_twin & last->is_counted;
	last->is_counted &= is_ended - 1;
	last->is_twin |= is_twin;
	queue->dialogue.last_place = free;
	if (is_twin) /* whoever asks again may not have waited for that server */
		forget_asked(config, state->owners, last->peer, content);
	query->asked_ns = 0;
	query->peer = datagram.peer;
	query->content = content;
	query->id = datagram.id;
	query->slice = config->slice;
	query->sent_at = now >> SENT_SHIFT;
	query->is_repeated = 0;
	query->is_twin = is_twin;
	query->spares = 0;
	query->is_known = is_known;
	query->is_dns = datagram.peer_port == bpf_htons(PORT_OF_DNS);
	asked_ns = now;
	if (is_known && !is_twin)
		asked_ns = first_asked(config, state->owners, datagram.peer, content, now);
	is_counted = query->is_dns & (is_twin ^ 1) & are_counted(config);
	is_new = is_counted & is_equal(asked_ns, now); /* else it is sent again */
	query->is_counted = is_counted;
	if (is_new | is_ended)
		add_both_for(config, state->owners, COUNTER_DNS_QUERIES, is_new,
			     COUNTER_DNS_QUERIES_ENDED, is_ended);
	query->asked_ns = asked_ns;
}

/* A reply to this query, which was asked then. */
static __always_inline void end_query(struct config *config, struct socket_state *state,
				      struct socket_queue *queue, volatile struct query *query,
				      u64 asked_ns, u64 now)
{
	volatile struct query *counted;
	u32 i, ended = 0, peer = query->peer;

	note_replier(config, state->owners, peer, now);
	forget_asked(config, state->owners, peer, query->content);
	query->asked_ns = 0;
	/* A name server is there. The replies to others may come unseen: see note_reply(). */
#pragma unroll
	for (i = 0; i < FEW_HANDOFFS; i++) {
		counted = &queue->queries[i];
		ended += counted->is_counted;
		counted->is_counted = 0;
	}
	if (ended)
		add_for(config, state->owners, COUNTER_DNS_QUERIES_ENDED, ended);
	record_for(config, state->owners, STAGE_UDP_RESPONSE, now - asked_ns);
	if (query->is_dns)
		add_for(config, state->owners, COUNTER_DNS_RESPONSE_NS, now - asked_ns);
}

/*
 * The query whose id this datagram has. A query of DNS is seen behind this node's own NAT (a Service's
 * address), and the reply before it: there the id is enough.
 */
static __always_inline u64 find_query(struct config *config, struct socket_queue *queue,
				      struct datagram *datagram, u64 now)
{
	volatile struct query *query;
	u64 found = 0;
	u32 i;

#pragma unroll
	for (i = 0; i < FEW_HANDOFFS; i++) {
		query = &queue->queries[i];
		found = keep_place(found,
				   is_equal(query->id, datagram->id) &
					   (is_equal(query->peer, datagram->peer) | query->is_dns) &
					   is_asked(config, query, now),
				   i);
	}
	return found;
}

/*
 * 1 if this datagram has the id of the query that was answered last: another reply to that one. What other
 * queries have too is no id: all data of a tunnel begins with the same bytes.
 */
static __always_inline u64 is_spare(struct socket_queue *queue, u64 answered,
				    struct datagram *datagram)
{
	volatile struct query *query = query_at(queue, answered), *other;
	u64 is_of_query = is_equal(query->id, datagram->id) &
			  (is_equal(query->peer, datagram->peer) | query->is_dns) &
			  is_equal(query->asked_ns, 0) &
			  is_below_0(query->spares - (u64)MOST_SPARES);
	u64 number = 0;
	u32 i;

#pragma unroll
	for (i = 0; i < FEW_HANDOFFS; i++) {
		other = &queue->queries[i];
		number += is_equal(other->id, datagram->id) & is_equal(other->peer, query->peer);
	}
	return is_of_query & is_equal(number, 1);
}

struct queries_ended {
	u32 count;
	u32 counted; /* of these, as queries of DNS */
};

/*
 * The oldest query to this peer; a reply without an id answers all that was asked of it. `is_any` 1: a
 * reader was faster, so the peer is not known. They all end here, but for the oldest.
 */
static __always_inline u64 find_oldest(struct config *config, struct socket_queue *queue, u32 peer,
				       u64 is_any, struct queries_ended *ended, u64 now)
{
	volatile struct query *query;
	u64 oldest = 0, oldest_ns = now, is_here, asked_ns;
	u32 i;

#pragma unroll
	for (i = 0; i < FEW_HANDOFFS; i++) {
		query = &queue->queries[i];
		is_here = is_asked(config, query, now) & (is_any | is_equal(query->peer, peer));
		asked_ns = query->asked_ns;
		query->asked_ns = asked_ns & (is_here - 1);
		ended->count += is_here;
		ended->counted += is_here & query->is_counted;
		query->is_counted &= is_here - 1;
		is_here &= is_below_0(asked_ns - oldest_ns);
		oldest = keep_place(oldest, is_here, i);
		oldest_ns ^= (oldest_ns ^ asked_ns) & (0 - is_here);
	}
	query_at(queue, oldest)->asked_ns |= oldest_ns & (0 - is_below_0(-oldest));
	return oldest;
}

/*
 * Find the query that one of the last datagrams answers: several may be queued before the first event,
 * see find_queued(), and there is an event for each. The results are in a map, where they are unknown
 * to the verifier.
 */
static __always_inline void find_replied(struct config *config, struct sock *sk,
					 struct socket_queue *queue, u64 now)
{
	struct sk_buff_head *of_reader = &((struct udp_sock *)sk)->reader_queue;
	volatile struct dialogue *dialogue = &queue->dialogue;
	u64 end = (u64)&sk->sk_receive_queue, place;
	struct sk_buff *skb = PEEK(&sk->sk_receive_queue, prev);
	struct datagram datagram;
	u32 i;

	dialogue->place = 0;
	dialogue->is_spare = 0;
	dialogue->last_peer = 0;
	if ((u64)skb == end) { /* a reader moves all there, first_packet_length() */
		end = (u64)of_reader;
		skb = PEEK(of_reader, prev);
	}
#pragma unroll
	for (i = 0; i < QUEUED_AT_ONCE; i++) {
		if (!skb || (u64)skb == end)
			break;
		datagram = parse_received(skb);
		if (!i) {
			dialogue->last_peer = datagram.peer;
			dialogue->is_spare = is_spare(queue, dialogue->answered, &datagram);
		}
		place = find_query(config, queue, &datagram, now);
		dialogue->place ^= (dialogue->place ^ place) & (0 - is_below_0(-place));
		skb = PEEK(skb, prev);
	}
}

/* A datagram came to a client: returns the label of its segment. */
static __always_inline u32 end_queries(struct config *config, struct sock *sk,
				       struct socket_state *state, struct socket_queue *queue)
{
	volatile struct dialogue *dialogue = &queue->dialogue;
	u64 now = bpf_ktime_get_ns(), place, asked_ns;
	volatile struct query *query;
	u64 is_unseen;
	struct queries_ended ended = {};
	u32 last_peer;

	dialogue->unanswered = 0;
	find_replied(config, sk, queue, now);
	place = dialogue->place;
	last_peer = dialogue->last_peer;
	is_unseen = is_equal(last_peer, 0);
	if (place) {
		dialogue->has_ids = 1;
	} else if (dialogue->is_spare) {
		query_at(queue, dialogue->answered)->spares++;
		return SPARE;
	} else if ((is_unseen || !dialogue->has_ids) &&
		   !(READ(sk, sk_userlocks) & SOCK_BINDPORT_LOCK)) {
		place = find_oldest(config, queue, last_peer, is_unseen, &ended, now);
		if (ended.counted)
			add_for(config, state->owners, COUNTER_DNS_QUERIES_ENDED, ended.counted);
		if (is_unseen && dialogue->has_ids && ended.count > 1) {
			query_at(queue, place)->asked_ns = 0;
			unmatched_for(config, state->owners, STAGE_UDP_RESPONSE, ended.count);
			return 0;
		}
	}
	if (!place)
		return 0;
	query = query_at(queue, place);
	asked_ns = query->asked_ns;
	dialogue->answered = place;
	end_query(config, state, queue, query, asked_ns, now);
	return now - asked_ns >= LATE_REPLY_NS ? LATE + dialogue->sent : 0;
}

/* A datagram is in its socket's queue. */
static __always_inline void note_reply(struct config *config, struct sock *sk,
				       struct socket_state *state)
{
	struct socket_queue *queue = look_up_socket_queue(sk);
	volatile struct dialogue *dialogue;

	if (!queue || config->sees_departures)
		return;
	dialogue = &queue->dialogue;
	if (!dialogue->role)
		dialogue->role = ANSWERS;
	if (dialogue->role == ASKS)
		dialogue->label = end_queries(config, sk, state, queue);
#ifdef MODULE_TCP
	else
		dialogue->label = label_last(sk);
#endif
	/* in the map it is unknown to the verifier, which follows one path from here on */
	label_last_segment(config, sk, state, queue, dialogue->label);
}

#endif

/*
 * A socket gives a datagram to the application: a server's may be a question. True of a client's if no reader
 * has waited for it.
 */
static __always_inline bool note_question(struct config *config, struct socket_queue *queue,
					  owners_t owners, struct segment *segment, u64 now)
{
#ifdef WITH_QUERIES
	u32 label = segment->end_seq;

	segment->end_seq = 0;
	if (queue->dialogue.role == ASKS)
		return label == SPARE || (label && label != LATE + queue->dialogue.sent);
#ifdef MODULE_TCP
	if (label)
		begin_question(config, owners, label, now);
#endif
#endif
	return false;
}
