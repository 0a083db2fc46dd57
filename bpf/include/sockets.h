/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The state per socket of a target: its owners, the segments that wait in its queue, and the bytes
 * that wait to be sent. In parts, since most sockets need little of it:
 *
 *   socket_states   with the first event: whose it is, and how far it is
 *   socket_queues   with the first data: the few segments and hand-offs that mostly wait at once
 *   segment_rings, handoff_rings   when more wait
 *   recoveries      with the first segment that is sent again
 *   socket_paths    with the first data that comes
 *
 * TCP's paths that touch it (tcp_rcv_established, tcp_recvmsg, tcp_sendmsg_locked, tcp_write_xmit,
 * state changes) hold the socket's lock, so it needs none of its own. It dies with the socket.
 */

#define FEW_SEGMENTS 4 /* in a queue; these must be powers of two */
#define SEGMENTS 64    /* in a ring */
/* Of one read, segments times slots; fewer while a trace runs, since they verify longer. */
#define READ_ROUNDS (TRACE ? 56 : 64)

/* A received segment between tcp_probe and the application. Durations saturate at 4.2 s. */
struct segment {
	u64 queued_ns;	/* when it reached the socket */
	u32 seq;	/* of a datagram: its position in the queue */
	u32 end_seq;	/* of a datagram: see label_of() and SPARE; 0: none */
	u32 softirq_ns; /* durations of the stages before; ABSENT where there was none */
	u32 host_ns;
	u32 stack_ns;
	u32 before_ns; /* their sum */
	u32 irq_ns;    /* the first of them; 0 where there was none */
	u32 reader;    /* thread that read the socket last, when this was queued; 0: not known */
#ifdef MODULE_SCHED
	u64 reader_waited_ns; /* how long it had waited for a CPU in its life */
#endif
#if TRACE
	struct endpoints endpoints; /* of a datagram */
#endif
};
#define ABSENT 0xffffffffU

static __always_inline u32 saturate(u64 ns)
{
	return ns < ABSENT ? ns : ABSENT - 1;
}

/* A segment of TCP that reaches its socket. */
struct incoming {
	u64 identity; /* of its skb, see identity_of() */
	u32 seq;
	u32 end_seq; /* of its data, without a FIN */
	u32 ack_seq;
	u32 size;	 /* with TCP's header */
	bool is_end;	 /* it has a FIN */
	bool is_closing; /* the peer's window: closed by this one, or by the one before */
	bool is_beside;	 /* a process has the socket, or others wait that came before */
	bool has_stamp;
	bool is_quick; /* the peer's time stamp does not matter: see is_quick() */
	u32 stamp;     /* the peer's time stamp */
};

#define FEW_HANDOFFS 4 /* in a queue; these must be powers of two */
#define HANDOFFS 32    /* in a ring */

/* Bytes that an application handed to TCP; see send.bpf.c. */
struct handoff {
	u64 handed_ns; /* 0: of the bytes from `seq` on it is not known */
	u32 seq;
	u32 end;       /* where the message would end; the next hand-off may begin before it */
	u32 limit_end; /* up to here the windows would have let it go */
	u16 is_window; /* the peer's window was tighter than the congestion window */
	u16 is_behind; /* another obstacle than a window */
};

/* A client's datagram that waits for a reply; see queries.bpf.c. As large as a hand-off. */
struct query {
	u64 asked_ns; /* when it was first sent; 0: none */
	u32 peer;
	u32 content;
	u16 id;
	u16 slice;	 /* the time slice in which it was sent */
	u16 sent_at;	 /* when this socket sent it last, in units of SENT_SHIFT */
	u8 is_known : 1; /* the peer replies */
	u8 is_dns : 1;
	u8 is_repeated : 1; /* this socket has sent it again */
	u8 is_twin : 1;	    /* several servers were asked at once */
	u8 spares : 2;	    /* replies after the first one */
	u8 is_counted;	    /* and has not ended */
};

/* Of a UDP socket, which has no hand-offs. */
struct dialogue {
	u8 role : 2;
	u8 has_ids : 1;	 /* a reply had the first bytes of its query */
	u8 sent : 5;	 /* datagrams, modulo 32 */
	u8 last_place;	 /* of the last query, plus 1 */
	u8 unanswered;	 /* datagrams since the last reply, to peers that are not known to reply */
	u8 place : 3;	 /* of the query that the last datagrams answer, plus 1 */
	u8 answered : 3; /* of the one that was answered last */
	u8 is_spare : 1; /* the last datagram answers that one again */
	union {
		u32 last_peer; /* who sent the last datagram; 0: a reader was faster */
		u32 label;     /* then, of its segment */
	};
};

/* How regularly a server speaks, and how regularly after a request: see note_pace(). Times are packed. */
struct pace {
	u16 interval;  /* the last one from its last bytes to its next answer */
	u16 wait;      /* the last one from a request to its answer */
	u16 reference; /* one of the waits before */
	s16 interval_change;
	u32 piece; /* when its last bytes were sent, or came; 0: not known */
	s16 wait_change;
	u16 votes : 5;	      /* for its own pace, less those against it */
	u16 is_twice : 1;     /* it spoke again without a request, at about that interval */
	u16 is_whole : 1;     /* its last answer has not gone on after a pause */
	u16 server_votes : 4; /* that it has a clock of its own; the client */
	u16 client_votes : 4;
};

/* The side that sent last, and when: see turns.bpf.c. */
struct turns {
	u64 read_ns;	 /* when the application last read */
	u64 request_ns;	 /* when a client began its request; 0: none waits for a reply */
	u32 read_seq;	 /* end of the last read */
	u32 turn_seq;	 /* how far a server had read when it last began to answer */
	u32 answer_seq;	 /* first byte of a server's last answer */
	u32 request_seq; /* first byte of a client's last request */
	u8 role;
	u8 is_known;	   /* bytes from before we watched do not matter any more */
	u8 is_answer_sent; /* and the peer has sent nothing since */
	u8 doubt;	   /* why the present turn may be no request: see IN_DOUBT */
	u8 is_end_late;	   /* the peer's FIN came when all before it had been read */
	u8 overlaps;	   /* how often both sides were seen to speak at once: see note_overlap() */
	u16 past;	   /* the answers so far, and the slowest of them: see note_answer() */
	union {
		struct pace pace;
		struct { /* of a listener, when it was last read: beside `pace.piece` */
			u32 listener_drops;
			u32 netns_overflows;
		};
	};
};

struct socket_state {
	u32 generation; /* of the configuration at the look-up of `owners` */
	u32 port_pair;	/* and the ports: both change when a socket is bound or connected */
	owners_t owners;
	owners_t process_owners; /* of the process that claimed it, before the filters */
	union {
		u64 connect_ns; /* SYN sent; 0 when no connect is pending */
#ifdef MODULE_TCP
		u64 established_ns; /* of a passive open, until accept() returns it */
#endif
	};
	/* of a passive open, while the owner is not known; of a connect, see note_slow_connect() */
	u32 handshake_ns;
	u8 is_candidate;	 /* perhaps a target process's; known once it touches the socket */
	u8 is_seq_known : 1;	 /* known_seq is set */
	u8 is_queue_refused : 1; /* there was no memory for its queue */
	u8 is_read_seq_known : 1;
#ifdef MODULE_TCP
	u8 is_listener_known : 1; /* turns.listener_drops is set */
	u8 is_established : 1;	  /* of a passive open: its handshake was counted */
	u8 is_rtt_untrue : 1;	  /* its handshake was no round trip */
#endif
	u8 slice;      /* the low bits of the time slice in which it was last seen */
	u8 counted_in; /* the last count of sockets that saw it */
#if defined(MODULE_RX) || defined(MODULE_TCP)
	u32 read_seq;  /* end of the bytes that were read, when it was last seen */
	u32 read_from; /* and when it was seen before */
#endif
#if TRACE
	struct user user; /* the last that used it */
#endif
#ifdef MODULE_TCP
	struct turns turns;
	u8 recovering;		 /* not 0: `recoveries` has more; see recovery.bpf.c */
	u8 is_window_closed : 1; /* ours; the peer's */
	u8 is_peer_window_closed : 1;
	u8 is_window_low : 1; /* ours may have closed since */
	u8 last_ack : 2;      /* enum ack: how the last one of new data came */
#endif
	u8 maker;      /* see new_states */
	u8 pending_in; /* the last reading of what is pending that saw it */
	u16 charged;   /* 1 + the element of socket_memory that its memory is in; 0: none */
	u16 share;     /* the element of the share of the node's memory that it is in, too */
	u32 admitted;  /* to both: the number of the last change of targets before */
#ifdef MODULE_RX
	u32 known_seq; /* end of the bytes that are accounted for, as lost or unmatched too */
#endif
};

/* Of a connection that sent segments again: see recovery.bpf.c. */
struct recovery {
	u64 begin_ns; /* when the oldest of the bytes were sent first; of a handshake: how long it took */
	u64 noted_ns; /* when those at `noted_seq` were sent; 0: not known */
	u32 noted_seq;
	u32 end_seq;	    /* until this is acknowledged */
	u32 duplicates;	    /* that the peer had reported when this was last seen */
	u32 timeout_seq;    /* snd_una at the last time-out */
	u32 timeout_number; /* and icsk_retransmits */
	u32 drops; /* on this node, of segments that were sent again: see dropped_segments */
};

struct socket_queue {
#ifdef MODULE_RX
	u32 head; /* next to read, next to fill: free-running */
	u32 tail;
	u16 skipped;	 /* segments that left the queue unseen */
	u16 outdated;	 /* and those that waited too long */
	u32 reader;	 /* the thread that read last; 0: not known */
	u32 arrived_seq; /* end of what reached the socket in order, while others wait before it */
	u8 is_arrived_known;
#endif
	u8 has_segment_ring; /* the segments are there, and not here; so it stays */
	u8 has_handoff_ring;
#ifdef MODULE_RX
	u8 taken;	     /* segments by the present read */
	u64 reader_delay_ns; /* how long that thread had waited for a CPU in its life */
#endif
#ifdef MODULE_TX
	union {
		struct {
			u32 handed_head; /* oldest, next to fill: free-running */
			u32 handed_tail;
		};
		struct dialogue dialogue;
	};
#endif
#ifdef MODULE_RX
	owners_t owners_left;	/* of the segment that is recorded now */
	struct segment present; /* a copy of it */
	struct segment segments[FEW_SEGMENTS];
#endif
#ifdef MODULE_TX
	union {
		struct handoff handed[FEW_HANDOFFS];
		struct query queries[FEW_HANDOFFS];
	};
#endif
};

/* How segments come from the peer, and its present message: see paths.bpf.c. */
struct socket_path {
	u64 began_ns;	    /* when the message began; see PAUSED */
	u64 data_ns;	    /* when its last data came */
	u64 answer_ns;	    /* of a server: when its last answer began */
	u32 sent_seq;	    /* end of what we had written before it */
	u32 held_us;	    /* gaps in it that ended after an ACK that we delayed */
	u32 least_us;	    /* the least difference between our clock and the peer's */
	u32 least_at;	    /* when it was seen */
	u16 sampled_at;	    /* the last sample of growth, modulo 2**16 */
	u16 round_at;	    /* when the present round began, see follow_window() */
	u32 growth_us;	    /* of the path, at the last segment */
	u32 ack_growth_us;  /* and at the last ACK of new data */
	u32 round_end : 24; /* where our window ended then */
	u32 gaps : 2;
	u32 is_first : 1; /* the last data began it */
	u32 is_clock_seen : 1;
	u32 is_clock_known : 1;
};

struct segment_ring {
	struct segment segments[SEGMENTS];
};

struct handoff_ring {
	struct handoff handed[HANDOFFS];
};

/*
 * Each part is a storage of its sockets, which ends with them. The kernel adds 72 bytes to a part
 * (struct bpf_local_storage_elem), and another 192 to the first (struct bpf_local_storage): see
 * MOST_BYTES, kernel/abi.py. Without BTF it is a hash by address.
 * The address of a freed socket may be reused: there, states end in on_inet_sock_set_state(),
 * on_tcp_destroy_sock() and by LRU.
 */

#if TYPED

/*
 * The storage of sockets. To bcc it is a hash of one element: for BPF_SK_STORAGE() it would need the
 * types of keys and values, which are debug information, a quarter of the time to compile.
 * kernel/build/compiler.py makes a storage of it again, kernel/load/maps.py its types.
 */
#define SOCKET_STORAGE(name, value)                                          \
	struct name##_table_t {                                              \
		int key;                                                     \
		value leaf;                                                  \
		void *(*sk_storage_get)(void *, void *, int);                \
		int (*sk_storage_delete)(void *);                            \
		u32 max_entries;                                             \
		u32 flags;                                                   \
	};                                                                   \
	__attribute__((section("maps/hash"))) struct name##_table_t name = { \
		.max_entries = 1, .flags = BPF_F_NO_PREALLOC                 \
	}

BYTES_OF(socket_state);
SOCKET_STORAGE(socket_states, struct socket_state_bytes);

static __always_inline struct socket_state *look_up_socket_state(struct sock *sk)
{
	return (struct socket_state *)socket_states.sk_storage_get(sk, 0, 0);
}

/*
 * How states begin, by CPU. Two CPUs may make the same one: a connection is in the accept queue before
 * its handshake ends, tcp_check_req(), net/ipv4/tcp_minisocks.c. The kernel takes one of both, so
 * `maker` is 1 + the number of that CPU.
 */
#define MAKERS 64 /* must be a power of two; higher numbers share a place */
BPF_ARRAY(new_states, struct socket_state_bytes, MAKERS);

static __always_inline struct socket_state *create_socket_state(struct sock *sk, u32 cpu)
{
	struct socket_state *new = (struct socket_state *)new_states.lookup(&cpu);

	if (!new)
		return 0;
	new->maker = cpu + 1; /* always the same */
	return (struct socket_state *)socket_states.sk_storage_get(sk, new,
								   BPF_SK_STORAGE_GET_F_CREATE);
}

#if defined(MODULE_RX) || defined(MODULE_TX)
BYTES_OF(socket_queue);
SOCKET_STORAGE(socket_queues, struct socket_queue_bytes);

static __always_inline struct socket_queue *look_up_socket_queue(struct sock *sk)
{
	return (struct socket_queue *)socket_queues.sk_storage_get(sk, 0, 0);
}

static __always_inline struct socket_queue *create_socket_queue(struct sock *sk)
{
	return (struct socket_queue *)socket_queues.sk_storage_get(sk, 0,
								   BPF_SK_STORAGE_GET_F_CREATE);
}
#endif

#ifdef MODULE_RX
BYTES_OF(segment_ring);
SOCKET_STORAGE(segment_rings, struct segment_ring_bytes);

static __always_inline struct segment_ring *look_up_segment_ring(struct sock *sk)
{
	return (struct segment_ring *)segment_rings.sk_storage_get(sk, 0, 0);
}

static __always_inline struct segment_ring *create_segment_ring(struct sock *sk)
{
	return (struct segment_ring *)segment_rings.sk_storage_get(sk, 0,
								   BPF_SK_STORAGE_GET_F_CREATE);
}
#endif

#ifdef MODULE_TX
BYTES_OF(handoff_ring);
SOCKET_STORAGE(handoff_rings, struct handoff_ring_bytes);

static __always_inline struct handoff_ring *look_up_handoff_ring(struct sock *sk)
{
	return (struct handoff_ring *)handoff_rings.sk_storage_get(sk, 0, 0);
}

static __always_inline struct handoff_ring *create_handoff_ring(struct sock *sk)
{
	return (struct handoff_ring *)handoff_rings.sk_storage_get(sk, 0,
								   BPF_SK_STORAGE_GET_F_CREATE);
}
#endif

#ifdef MODULE_TCP
BYTES_OF(recovery);
SOCKET_STORAGE(recoveries, struct recovery_bytes);

static __always_inline struct recovery *look_up_recovery(struct sock *sk)
{
	return (struct recovery *)recoveries.sk_storage_get(sk, 0, 0);
}

static __always_inline struct recovery *create_recovery(struct sock *sk)
{
	return (struct recovery *)recoveries.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
}

BYTES_OF(socket_path);
SOCKET_STORAGE(socket_paths, struct socket_path_bytes);

static __always_inline struct socket_path *look_up_socket_path(struct sock *sk)
{
	return (struct socket_path *)socket_paths.sk_storage_get(sk, 0, 0);
}

static __always_inline struct socket_path *create_socket_path(struct sock *sk)
{
	return (struct socket_path *)socket_paths.sk_storage_get(sk, 0,
								 BPF_SK_STORAGE_GET_F_CREATE);
}
#endif

#else

#define QUEUES (TRACE ? 4096 : 8192) /* a trace makes queues and rings larger */
#define RINGS (TRACE ? 512 : 1024)

BYTES_OF(socket_state);
BPF_TABLE("lru_hash", u64, struct socket_state_bytes, socket_states, 8192);
BPF_ARRAY(empty_states, struct socket_state_bytes, 1);

static __always_inline struct socket_state *look_up_socket_state(struct sock *sk)
{
	u64 key = (u64)sk;

	return (struct socket_state *)socket_states.lookup(&key);
}

static __always_inline struct socket_state *create_socket_state(struct sock *sk)
{
	u64 key = (u64)sk;
	u32 zero = 0;
	struct socket_state_bytes *empty = empty_states.lookup(&zero);

	if (!empty)
		return 0;
	socket_states.update(&key, empty);
	return (struct socket_state *)socket_states.lookup(&key);
}

#if defined(MODULE_RX) || defined(MODULE_TX)
BYTES_OF(socket_queue);
BPF_TABLE("lru_hash", u64, struct socket_queue_bytes, socket_queues, QUEUES);
BPF_ARRAY(empty_queues, struct socket_queue_bytes, 1);

static __always_inline struct socket_queue *look_up_socket_queue(struct sock *sk)
{
	u64 key = (u64)sk;

	return (struct socket_queue *)socket_queues.lookup(&key);
}

static __always_inline struct socket_queue *create_socket_queue(struct sock *sk)
{
	u64 key = (u64)sk;
	u32 zero = 0;
	struct socket_queue_bytes *empty = empty_queues.lookup(&zero);

	if (!empty)
		return 0;
	socket_queues.update(&key, empty);
	return (struct socket_queue *)socket_queues.lookup(&key);
}
#endif

#ifdef MODULE_RX
BYTES_OF(segment_ring);
BPF_TABLE("lru_hash", u64, struct segment_ring_bytes, segment_rings, RINGS);
BPF_ARRAY(empty_segments, struct segment_ring_bytes, 1);

static __always_inline struct segment_ring *look_up_segment_ring(struct sock *sk)
{
	u64 key = (u64)sk;

	return (struct segment_ring *)segment_rings.lookup(&key);
}

static __always_inline struct segment_ring *create_segment_ring(struct sock *sk)
{
	u64 key = (u64)sk;
	u32 zero = 0;
	struct segment_ring_bytes *empty = empty_segments.lookup(&zero);

	if (!empty)
		return 0;
	segment_rings.update(&key, empty);
	return (struct segment_ring *)segment_rings.lookup(&key);
}
#endif

#ifdef MODULE_TX
BYTES_OF(handoff_ring);
BPF_TABLE("lru_hash", u64, struct handoff_ring_bytes, handoff_rings, RINGS);
BPF_ARRAY(empty_handoffs, struct handoff_ring_bytes, 1);

static __always_inline struct handoff_ring *look_up_handoff_ring(struct sock *sk)
{
	u64 key = (u64)sk;

	return (struct handoff_ring *)handoff_rings.lookup(&key);
}

static __always_inline struct handoff_ring *create_handoff_ring(struct sock *sk)
{
	u64 key = (u64)sk;
	u32 zero = 0;
	struct handoff_ring_bytes *empty = empty_handoffs.lookup(&zero);

	if (!empty)
		return 0;
	handoff_rings.update(&key, empty);
	return (struct handoff_ring *)handoff_rings.lookup(&key);
}
#endif

#ifdef MODULE_TCP
BYTES_OF(recovery);
BPF_TABLE("lru_hash", u64, struct recovery_bytes, recoveries, RINGS);
BPF_ARRAY(empty_recoveries, struct recovery_bytes, 1);

static __always_inline struct recovery *look_up_recovery(struct sock *sk)
{
	u64 key = (u64)sk;

	return (struct recovery *)recoveries.lookup(&key);
}

static __always_inline struct recovery *create_recovery(struct sock *sk)
{
	u64 key = (u64)sk;
	u32 zero = 0;
	struct recovery_bytes *empty = empty_recoveries.lookup(&zero);

	if (!empty)
		return 0;
	recoveries.update(&key, empty);
	return (struct recovery *)recoveries.lookup(&key);
}

BYTES_OF(socket_path);
BPF_TABLE("lru_hash", u64, struct socket_path_bytes, socket_paths, QUEUES);
BPF_ARRAY(empty_paths, struct socket_path_bytes, 1);

static __always_inline struct socket_path *look_up_socket_path(struct sock *sk)
{
	u64 key = (u64)sk;

	return (struct socket_path *)socket_paths.lookup(&key);
}

static __always_inline struct socket_path *create_socket_path(struct sock *sk)
{
	u64 key = (u64)sk;
	u32 zero = 0;
	struct socket_path_bytes *empty = empty_paths.lookup(&zero);

	if (!empty)
		return 0;
	socket_paths.update(&key, empty);
	return (struct socket_path *)socket_paths.lookup(&key);
}
#endif

/* The socket is closed: its address may be another's next. */
static __always_inline void forget_socket(struct sock *sk)
{
	u64 key = (u64)sk;

	socket_states.delete(&key);
#if defined(MODULE_RX) || defined(MODULE_TX)
	socket_queues.delete(&key);
#endif
#ifdef MODULE_RX
	segment_rings.delete(&key);
#endif
#ifdef MODULE_TX
	handoff_rings.delete(&key);
#endif
#ifdef MODULE_TCP
	recoveries.delete(&key);
	socket_paths.delete(&key);
#endif
}

#endif

/*
 * How much memory the parts of sockets take, in KiB. The elements are those of the slots, one of the
 * node, and shares of the node's memory: one for each namespace (of Kubernetes), and one for all, which
 * serves where a namespace's own is full. Beyond `most_kib` of any of them a socket gets no part, and
 * what would have been measured is lost. Sockets of TCP give it back when they end,
 * on_tcp_destroy_sock(). No event reports the end of others, so the agent has them counted,
 * count_socket(), and corrects the sums. Each member has one side alone that writes it; so no
 * update is lost.
 *
 * An element gets another user: a slot another target, a share another namespace. Sockets that were
 * charged to the user before count for the node alone: see memory_for().
 *
 * Without BTF the parts are in maps of a fixed size, and nothing of this is used.
 */
struct socket_memory {
	/* by programs; the sums never return to 0 */
	u32 kib;
	u32 unreported_kib; /* a part of it: of sockets whose end nothing reports */
	u32 counted_kib;    /* of such sockets, that counts have seen */
	u32 refused;	    /* of a slot, and of the node for sockets of none: how often */
	/* by the agent */
	u32 most_kib;
	u32 gone_kib; /* a part of `kib`: of users before, and what a count did not see */
	u32 since; /* the number of the change of targets that brought its user; of the node: the last */
	u32 share; /* of a slot: the element of its namespace */
	u32 count; /* of the node: the number of the present count */
};
BPF_F_TABLE("array", u32, struct socket_memory, socket_memory, SOCKET_MEMORY_PLACES,
	    BPF_F_MMAPABLE);

#define SOCKET_KIB 1 /* its state, its queue, its path and its recovery */
#define SEGMENT_RING_KIB 4
#define HANDOFF_RING_KIB 1

#if TYPED

static __always_inline bool is_end_reported(struct sock *sk)
{
	return READ(sk, sk_protocol) != IPPROTO_UDP;
}

/* `spare`: 1 if half of it is to stay free, 0 if none. */
static __always_inline bool has_room(struct socket_memory *memory, s32 kib, u32 spare)
{
	return (s32)(memory->kib - memory->gone_kib) + kib <= (s32)memory->most_kib >> spare;
}

static __always_inline void add_kib(struct socket_memory *memory, struct sock *sk, s32 kib)
{
	__sync_fetch_and_add(&memory->kib, kib);
	if (!is_end_reported(sk))
		__sync_fetch_and_add(&memory->unreported_kib, kib);
}

static __always_inline struct socket_memory *memory_at(u32 place)
{
	return socket_memory.lookup(&place);
}

/* The element of a slot; NULL for sockets that are of none yet. */
static __always_inline struct socket_memory *memory_of(u32 slot)
{
	return slot < MEMORY_OF_NODE ? memory_at(slot) : 0;
}

/* What a socket was charged to. */
struct charged_to {
	u32 slot;
	u32 share;
	u32 admitted;
};

/* An element for what was charged to it so long ago; NULL if it was another user's then. */
static __always_inline struct socket_memory *memory_for(struct socket_memory *memory, u32 admitted)
{
	return memory && memory->since <= admitted ? memory : 0;
}

/* The share for a new socket of a slot, or of none: that of its namespace, if there is room. */
static __always_inline u32 share_for(u32 slot)
{
	struct socket_memory *of_slot = memory_of(slot), *of_namespace;

	if (!of_slot)
		return MEMORY_FOR_ALL;
	of_namespace = memory_at(of_slot->share);
	return of_namespace && has_room(of_namespace, SOCKET_KIB, 0) ? of_slot->share :
								       MEMORY_FOR_ALL;
}

static __always_inline bool charge(struct sock *sk, struct charged_to *to, s32 kib, u32 spare)
{
	struct socket_memory *of_node = memory_at(MEMORY_OF_NODE);
	struct socket_memory *of_share = memory_for(memory_at(to->share), to->admitted);
	struct socket_memory *of_slot = memory_for(memory_of(to->slot), to->admitted);

	if (!of_node)
		return false;
	if (!has_room(of_node, kib, spare) || (of_share && !has_room(of_share, kib, spare)) ||
	    (of_slot && !has_room(of_slot, kib, spare)))
		return false;
	add_kib(of_node, sk, kib);
	if (of_share)
		add_kib(of_share, sk, kib);
	if (of_slot)
		add_kib(of_slot, sk, kib);
	return true;
}

/* The element of the slot that loses by a refusal; the node's for sockets of none. */
static __always_inline u32 place_of_owners(owners_t owners)
{
	return owners ? first_slot(owners) & (MAX_SLOTS - 1) : MEMORY_OF_NODE;
}

static __always_inline void note_refusal(u32 place)
{
	struct socket_memory *memory = memory_at(place);

	if (memory)
		__sync_fetch_and_add(&memory->refused, 1);
}

/* A socket has `kib` less. */
static __always_inline void discharge(struct sock *sk, struct charged_to *to, s32 kib)
{
	struct socket_memory *of_node = memory_at(MEMORY_OF_NODE);
	struct socket_memory *of_share = memory_for(memory_at(to->share), to->admitted);
	struct socket_memory *of_slot = memory_for(memory_of(to->slot), to->admitted);

	if (of_node)
		add_kib(of_node, sk, -kib);
	if (of_share)
		add_kib(of_share, sk, -kib);
	if (of_slot)
		add_kib(of_slot, sk, -kib);
}

static __always_inline s32 memory_of_parts(struct sock *sk)
{
	s32 kib = SOCKET_KIB;
#if defined(MODULE_RX) || defined(MODULE_TX)
	struct socket_queue *queue = look_up_socket_queue(sk);

	if (queue && queue->has_segment_ring)
		kib += SEGMENT_RING_KIB;
	if (queue && queue->has_handoff_ring)
		kib += HANDOFF_RING_KIB;
#endif
	return kib;
}

static __always_inline struct charged_to charged_to(struct socket_state *state)
{
	struct charged_to to = { state->charged - 1, state->share, state->admitted };

	return to;
}

/* The state of a socket that has none; NULL if there is no room. `owners`: those that are known. */
static __always_inline struct socket_state *admit(struct sock *sk, owners_t owners)
{
	u32 slot = place_of_owners(owners), cpu = bpf_get_smp_processor_id() & (MAKERS - 1);
	struct socket_memory *of_node = memory_at(MEMORY_OF_NODE);
	struct charged_to to = { .slot = slot };
	struct socket_state *state;

	if (!of_node)
		return 0;
	to.admitted = of_node->since; /* before all that is read of the others */
	to.share = share_for(slot);
	if (!charge(sk, &to, SOCKET_KIB, 0)) {
		note_refusal(slot);
		return 0;
	}
	state = create_socket_state(sk, cpu);
	if (!state || state->maker != cpu + 1 || state->charged) { /* or it is another CPU's */
		discharge(sk, &to, SOCKET_KIB);
		return state;
	}
	state->charged = slot + 1;
	state->share = to.share;
	state->admitted = to.admitted;
	state->counted_in = of_node->count; /* which began without it */
	return state;
}

/*
 * A socket that has its state already turns out to be of `owners`. Its share stays as it was: the one
 * for all, which is always the same user's. It is charged to the slot beyond its bound, too: without its
 * state, the next packet would make one again, and be charged to the node again.
 */
static __always_inline void charge_owner(struct sock *sk, struct socket_state *state,
					 owners_t owners)
{
	u32 slot = first_slot(owners) & (MAX_SLOTS - 1);
	struct socket_memory *of_node = memory_at(MEMORY_OF_NODE), *of_slot = memory_of(slot);

	if (state->charged != MEMORY_OF_NODE + 1 || !owners || !of_slot || !of_node)
		return;
	state->admitted = of_node->since;
	state->charged = slot + 1;
	if (of_slot->since <= state->admitted)
		add_kib(of_slot, sk, memory_of_parts(sk));
}

/* Half of the memory is for sockets that have no ring. */
static __always_inline bool charge_ring(struct sock *sk, struct socket_state *state, s32 kib)
{
	struct charged_to to = charged_to(state);

	if (state->charged && charge(sk, &to, kib, 1))
		return true;
	note_refusal(place_of_owners(state->owners));
	return false;
}

static __always_inline void discharge_ring(struct sock *sk, struct socket_state *state, s32 kib)
{
	struct charged_to to = charged_to(state);

	discharge(sk, &to, kib);
}

static __always_inline void end_socket(struct sock *sk)
{
	struct socket_state *state;
	struct charged_to to;

	if (!READ(sk, sk_bpf_storage))
		return;
	state = look_up_socket_state(sk);
	if (!state || !state->charged)
		return;
	to = charged_to(state);
	state->charged = 0;
	discharge(sk, &to, memory_of_parts(sk));
}

/*
 * The agent has the sockets counted whose end nothing reports. Each is counted once only, however often
 * it is seen.
 */
static __always_inline void count_socket(struct sock *sk)
{
	struct socket_memory *of_node = memory_at(MEMORY_OF_NODE), *of_slot, *of_share;
	struct socket_state *state;
	struct charged_to to;
	u8 count;
	s32 kib;

	if (!of_node || !READ(sk, sk_bpf_storage) || is_end_reported(sk))
		return;
	state = look_up_socket_state(sk);
	count = of_node->count;
	if (!state || !state->charged || state->counted_in == count)
		return;
	state->counted_in = count;
	kib = memory_of_parts(sk);
	to = charged_to(state);
	of_slot = memory_for(memory_of(to.slot), to.admitted);
	of_share = memory_for(memory_at(to.share), to.admitted);
	__sync_fetch_and_add(&of_node->counted_kib, kib);
	if (of_share)
		__sync_fetch_and_add(&of_share->counted_kib, kib);
	if (of_slot)
		__sync_fetch_and_add(&of_slot->counted_kib, kib);
}

#ifdef WITH_ON_KNOWN_SOCKET

/*
 * bpf_iter__bpf_sk_storage_map, net/core/bpf_sk_storage.c, 5.9+: each socket with a state. No process
 * need have it open: a message may hold it, or io_uring.
 */
int on_known_socket(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[2];

	if (sk)
		count_socket(sk);
	return 0;
}

#endif

#ifdef WITH_ON_SOCKET_FILE

/*
 * bpf_iter__task_file, kernel/bpf/task_iter.c, 5.8+: each open file, where the kernel refuses that one.
 * (An iterator over the sockets of UDP would see one namespace alone.)
 */
int on_socket_file(u64 *ctx)
{
	struct file *file = (struct file *)ctx[3];
	struct socket *socket;
	struct sock *sk;

	if (!file)
		return 0;
	socket = bpf_sock_from_file(file); /* 5.11+ */
	if (!socket)
		return 0;
	sk = READ(socket, sk);
	if (sk)
		count_socket(sk);
	return 0;
}

#endif

#else

static __always_inline struct socket_state *admit(struct sock *sk, owners_t owners)
{
	return create_socket_state(sk);
}

static __always_inline void charge_owner(struct sock *sk, struct socket_state *state,
					 owners_t owners)
{
}

static __always_inline bool charge_ring(struct sock *sk, struct socket_state *state, s32 kib)
{
	return true;
}

static __always_inline void discharge_ring(struct sock *sk, struct socket_state *state, s32 kib)
{
}

static __always_inline void end_socket(struct sock *sk)
{
	forget_socket(sk);
}

#endif

/* tcp_v4_destroy_sock(), net/ipv4/tcp_ipv4.c, 4.16+: the end of every socket of TCP, also of IPv6 */
int on_tcp_destroy_sock(u64 *ctx)
{
	end_socket((struct sock *)ctx[0]);
	return 0;
}

static __always_inline struct socket_state *find_state(struct sock *sk)
{
#if TYPED
	/* Most sockets are no target's and have no storage: then one load suffices. */
	if (!READ(sk, sk_bpf_storage))
		return 0;
#endif
	return look_up_socket_state(sk);
}

#if defined(MODULE_RX) || defined(MODULE_TX)

/* The queue of a socket that has, or had, data. */
static __always_inline struct socket_queue *get_queue(struct sock *sk, struct socket_state *state)
{
	struct socket_queue *queue = look_up_socket_queue(sk);

	if (queue)
		return queue;
	queue = create_socket_queue(sk);
	if (!queue)
		state->is_queue_refused = 1;
	return queue;
}

#endif

#ifdef MODULE_RX

/* NULL if the queue has none. (By LRU, a ring may end before its socket: then all in it is lost.) */
static __always_inline struct segment_ring *find_segment_ring(struct config *config,
							      struct sock *sk,
							      struct socket_state *state,
							      struct socket_queue *queue)
{
	struct segment_ring *ring;

	if (!queue->has_segment_ring)
		return 0;
	ring = look_up_segment_ring(sk);
#if !TYPED
	if (!ring) {
		miss_for(config, state->owners, STAGE_RX_SOCKET, LOST, queue->tail - queue->head);
		queue->head = queue->tail;
		queue->has_segment_ring = 0;
	}
#endif
	return ring;
}

/* A place among the segments; `ring`: that of the queue, if it has one. */
static __always_inline struct segment *segment_at(struct socket_queue *queue,
						  struct segment_ring *ring, u32 position)
{
	return ring ? &ring->segments[position & (SEGMENTS - 1)] :
		      &queue->segments[position & (FEW_SEGMENTS - 1)];
}

static __always_inline void copy_segment(volatile struct segment *into,
					 volatile struct segment *from)
{
	volatile u64 *to = (volatile u64 *)into, *of = (volatile u64 *)from;
	u32 i;

#pragma unroll
	for (i = 0; i < sizeof(*into) / sizeof(u64); i++)
		to[i] = of[i];
}

/* More segments wait than a queue has room for; NULL: there is no memory. */
static __always_inline struct segment_ring *widen_segments(struct sock *sk,
							   struct socket_state *state,
							   struct socket_queue *queue)
{
	struct segment_ring *ring;
	u32 i;

	if (!charge_ring(sk, state, SEGMENT_RING_KIB))
		return 0;
	ring = create_segment_ring(sk);
	if (!ring) {
		discharge_ring(sk, state, SEGMENT_RING_KIB);
		return 0;
	}
#pragma unroll
	for (i = 1; i <= FEW_SEGMENTS; i++)
		copy_segment(segment_at(queue, ring, queue->tail - i),
			     segment_at(queue, 0, queue->tail - i));
	queue->has_segment_ring = 1;
	return ring;
}

#endif

#ifdef MODULE_TX

/* The same of hand-offs: what is sent next is unmatched. */
static __always_inline struct handoff_ring *find_handoff_ring(struct sock *sk,
							      struct socket_queue *queue)
{
	struct handoff_ring *ring;

	if (!queue->has_handoff_ring)
		return 0;
	ring = look_up_handoff_ring(sk);
#if !TYPED
	if (!ring) {
		queue->handed_head = queue->handed_tail;
		queue->has_handoff_ring = 0;
	}
#endif
	return ring;
}

static __always_inline struct handoff *handoff_at(struct socket_queue *queue,
						  struct handoff_ring *ring, u32 position)
{
	return ring ? &ring->handed[position & (HANDOFFS - 1)] :
		      &queue->handed[position & (FEW_HANDOFFS - 1)];
}

static __always_inline void copy_handoff(volatile struct handoff *into,
					 volatile struct handoff *from)
{
	volatile u64 *to = (volatile u64 *)into, *of = (volatile u64 *)from;
	u32 i;

#pragma unroll
	for (i = 0; i < sizeof(*into) / sizeof(u64); i++)
		to[i] = of[i];
}

static __always_inline struct handoff_ring *widen_handoffs(struct sock *sk,
							   struct socket_state *state,
							   struct socket_queue *queue)
{
	struct handoff_ring *ring;
	u32 i;

	if (!charge_ring(sk, state, HANDOFF_RING_KIB))
		return 0;
	ring = create_handoff_ring(sk);
	if (!ring) {
		discharge_ring(sk, state, HANDOFF_RING_KIB);
		return 0;
	}
#pragma unroll
	for (i = 1; i <= FEW_HANDOFFS; i++)
		copy_handoff(handoff_at(queue, ring, queue->handed_tail - i),
			     handoff_at(queue, 0, queue->handed_tail - i));
	queue->has_handoff_ring = 1;
	return ring;
}

#endif

/* The wider type of a TCP socket that is a program's argument; NULL for any other. */
static __always_inline struct tcp_sock *get_tcp_sock(struct sock *sk)
{
#if TYPED
	return bpf_skc_to_tcp_sock(sk); /* 5.9+ */
#else
	return (struct tcp_sock *)sk;
#endif
}

/*
 * 0 of a raw socket, whatever its protocol: it is no connection, and nothing reports its end. The
 * kernel itself has one per CPU, from which it answers what belongs to no socket,
 * ip_send_unicast_reply(), net/ipv4/ip_output.c: it is in the namespace of the present answer.
 */
static __always_inline u32 protocol_of(struct sock *sk)
{
	u64 family = READ(sk, __sk_common.skc_family), protocol = READ(sk, sk_protocol);
	u64 is_inet = is_equal(family, AF_INET) | is_equal(family, AF_INET6);
	u64 type = READ(sk, sk_type);
	u64 is_tcp = is_equal(protocol, IPPROTO_TCP) & is_equal(type, SOCK_STREAM);
	u64 is_udp = is_equal(protocol, IPPROTO_UDP) & is_equal(type, SOCK_DGRAM);

	return is_inet * (is_tcp * PROTOCOL_TCP | is_udp * PROTOCOL_UDP);
}

/* Request and time-wait sockets are shorter structs: only their common part may be read. */
static __always_inline bool is_full(struct sock *sk)
{
	u8 state = READ(sk, __sk_common.skc_state);

	return state != TCP_NEW_SYN_RECV && state != TCP_TIME_WAIT;
}

/*
 * By the helper, since it is rarely needed: where a pointer is read from a program's argument, the
 * verifier searches all names of the kernel's types, btf_nested_type_is_trusted(), kernel/bpf/btf.c.
 */
static __always_inline struct cgroup *cgroup_of(struct sock *sk)
{
#ifdef HAVE_sock_cgroup_data_cgroup
	return PEEK(sk, sk_cgrp_data.cgroup);
#else
	/* before 5.16: a pointer unless bit 0 marks it as net_cls data, sock_cgroup_ptr() */
	u64 value = READ(sk, sk_cgrp_data.val);

	return value & 1 ? 0 : (struct cgroup *)value;
#endif
}

static __always_inline owners_t look_up_owners(struct config *config, struct sock *sk,
					       struct netns_entry *netns)
{
	u32 protocol = protocol_of(sk);
	u16 local = READ(sk, __sk_common.skc_num);
	u16 remote = bpf_ntohs(READ(sk, __sk_common.skc_dport));
	owners_t by_cgroup = owners_of_cgroup(config, cgroup_of(sk)); /* NULL has none */
	owners_t owners = add_owners(0, netns->owners, protocol, local, remote);

	return add_owners(owners, by_cgroup, protocol, local, remote);
}

/* A kernel thread may use a socket for a process: a parser of messages does, strp_work(). */
static __always_inline bool is_kernel_thread(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u32 flags = 0;

	bpf_probe_read_kernel(&flags, sizeof(flags), &task->flags);
	return flags & PF_KTHREAD;
}

/* `owners`, and those of the process that uses the socket now. */
static __always_inline owners_t add_user(owners_t owners, struct sock *sk)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	owners_t *others = processes.lookup(&tgid);

	if (!others || is_kernel_thread())
		return owners;
	return add_owners(owners, *others, protocol_of(sk), READ(sk, __sk_common.skc_num),
			  bpf_ntohs(READ(sk, __sk_common.skc_dport)));
}

/* A process reads, writes, connects, listens or has it open: is the socket a target's? */
static __always_inline void claim(struct sock *sk, struct socket_state *state,
				  struct config *config, u32 tgid)
{
	owners_t *owners = processes.lookup(&tgid);

	state->is_candidate = 0;
	if (!owners)
		return;
	state->process_owners = *owners;
	state->owners = add_owners(state->owners, *owners, protocol_of(sk),
				   READ(sk, __sk_common.skc_num),
				   bpf_ntohs(READ(sk, __sk_common.skc_dport)));
	charge_owner(sk, state, state->owners);
#ifdef MODULE_TCP
	if (state->handshake_ns && state->is_established) {
		record_for(config, state->owners, STAGE_TCP_HANDSHAKE, state->handshake_ns);
		state->handshake_ns = 0;
	}
#endif
}

/*
 * The owners of a socket that has no state, because there is no room. `users`: those of them that are
 * known only where their process uses the socket.
 */
struct turned_away {
	owners_t owners;
	owners_t users;
};

/* What is noted of the socket's bytes is outdated: events of it were not seen. */
static __always_inline void forget_bytes(struct socket_state *state)
{
	state->is_read_seq_known = 0;
#ifdef MODULE_TCP
	state->turns.is_known = 0;
	state->turns.is_answer_sent = 0;
	state->turns.doubt = 0;
	state->turns.request_ns = 0;
	state->turns.read_ns = 0;
	state->turns.pace.piece = 0;
#endif
}

static __always_inline struct socket_state *resolve_state(struct sock *sk,
							  struct socket_state *state,
							  struct config *config, u32 port_pair,
							  bool is_own, struct turned_away *away)
{
	struct net *net = PEEK(sk, __sk_common.skc_net.net);
	struct netns_entry *netns = find_netns(config, PEEK(net, ns.inum));
	owners_t owners = 0;
	bool is_candidate = false;

	if (netns && netns->flags & NETNS_WATCHED) {
		owners = look_up_owners(config, sk, netns);
		is_candidate = netns->flags & NETNS_PROCESSES;
	}
	if (!state) {
		owners_t known = owners;

		if ((!owners && !is_candidate) || !protocol_of(sk))
			return 0;
		if (is_own && is_candidate)
			known = add_user(owners, sk);
		state = admit(sk, known);
		if (!state) {
			away->owners = known;
			away->users = owners ? 0 : known;
			return 0;
		}
		state->slice = config->slice;
	}
	if (!state->owners && !state->is_candidate) { /* its events were not seen */
		forget_bytes(state);
#ifdef MODULE_TCP
		state->is_listener_known = 0;
#endif
	}
	if (state->generation != config->generation) {
		state->generation = config->generation;
		state->process_owners = 0;
		state->is_candidate = is_candidate;
	} else if (state->process_owners) { /* only the ports have changed */
		owners = add_owners(owners, state->process_owners, protocol_of(sk),
				    READ(sk, __sk_common.skc_num),
				    bpf_ntohs(READ(sk, __sk_common.skc_dport)));
	}
	state->port_pair = port_pair;
	state->owners = owners;
	return owners || state->is_candidate ? state : 0;
}

static __always_inline struct socket_state *look_up_state(struct sock *sk, struct config *config,
							  bool is_own, struct turned_away *away)
{
	struct socket_state *state = find_state(sk);
	u32 port_pair = READ(sk, __sk_common.skc_portpair);

	away->owners = away->users = 0;
	if (state && state->slice != (u8)config->slice) {
		state->slice = config->slice;
		forget_bytes(state);
	}
	if (state && state->generation == config->generation && state->port_pair == port_pair)
		return state->owners || state->is_candidate ? state : 0;
	return resolve_state(sk, state, config, port_pair, is_own, away);
}

/*
 * The state of a socket that is, or may be, a target's; NULL for all others, and `away` for those
 * without room.
 */
static __always_inline struct socket_state *get_state(struct sock *sk, struct config *config,
						      struct turned_away *away)
{
	return look_up_state(sk, config, false, away);
}

/* The same; `is_own`: in the application's own context, where its process is known too. */
static __always_inline struct socket_state *get_used_state(struct sock *sk, struct config *config,
							   bool is_own, struct turned_away *away)
{
	struct socket_state *state = look_up_state(sk, config, is_own, away);

	if (!state || !is_own)
		return state;
	if (state->is_candidate && !is_kernel_thread())
		claim(sk, state, config, bpf_get_current_pid_tgid() >> 32);
#if TRACE
	note_user(&state->user);
#endif
	return state->owners ? state : 0;
}

static __always_inline struct socket_state *get_own_state(struct sock *sk, struct config *config,
							  struct turned_away *away)
{
	return get_used_state(sk, config, true, away);
}

/* The owners of a socket, with or without room for its state. */
static __always_inline owners_t get_owners(struct sock *sk, struct config *config)
{
	struct turned_away away;
	struct socket_state *state = get_state(sk, config, &away);

	return state ? state->owners : away.owners;
}

/*
 * True in the context that holds a TCP socket's lock, lock_sock(): a process, or a kernel thread. A
 * softirq takes the spinlock alone and leaves the owner as it is: there is none.
 */
static __always_inline bool is_locked_by_process(struct sock *sk)
{
	return READ(sk, sk_lock.owned);
}

#if defined(MODULE_RX) || defined(MODULE_TCP)

/*
 * The end of the bytes that were read. The peer's FIN counts as one, in rcv_nxt once it is in order,
 * tcp_fin(), which sets SOCK_DONE, and in copied_seq once it was read.
 */
static __always_inline u32 read_end(struct sock *sk, struct tcp_sock *tp)
{
	u32 copied_seq = READ(tp, copied_seq);
	bool is_end_read = copied_seq == READ(tp, rcv_nxt) &&
			   READ(sk, __sk_common.skc_flags) & (1UL << SOCK_DONE);

	return is_end_read ? copied_seq - 1 : copied_seq;
}

/*
 * Note how far the application has read: true if it is further than before. What it read before we
 * watched is unknown: then it was the last byte, unless the connection's first one is unread.
 */
static __always_inline bool note_read_end(struct socket_state *state, struct sock *sk,
					  struct tcp_sock *tp)
{
	u32 end = read_end(sk, tp);

	state->read_from = state->read_seq;
	if (!state->is_read_seq_known) {
		u32 first = READ(tp, rcv_nxt) - (u32)READ(tp, bytes_received);

		state->is_read_seq_known = 1;
		state->read_from = end == first ? end : end - 1;
	}
	state->read_seq = end;
	return state->read_from != end;
}

#endif
