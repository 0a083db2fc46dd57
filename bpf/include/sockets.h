/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The state per socket of a target: its owners, the segments that wait in its queue, and the bytes
 * that wait to be sent.
 *
 * TCP's paths that touch it (tcp_rcv_established, tcp_recvmsg, tcp_sendmsg_locked, tcp_write_xmit,
 * state changes) hold the socket's lock, so it needs none of its own. It dies with the socket.
 */

#define SEGMENTS 64 /* must be a power of two */
#define READ_ROUNDS 64

/* A received segment between tcp_probe and the application. Durations saturate at 4.2 s. */
struct segment {
	u64 queued_ns; /* when it reached the socket */
	u32 seq;
	u32 end_seq;
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

#define HANDOFFS 32 /* must be a power of two */

/* Bytes that an application handed to TCP; see send.bpf.c. */
struct handoff {
	u64 handed_ns; /* 0: of the bytes from `seq` on it is not known */
	u32 seq;
	u32 end;       /* where the message would end; the next hand-off may begin before it */
	u32 limit_end; /* up to here the windows would have let it go */
	u16 is_window; /* the peer's window was tighter than the congestion window */
	u16 is_behind; /* another obstacle than a window */
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
	u8 is_doubtful;	   /* the present turn may be two requests' */
	u8 is_end_late;	   /* the peer's FIN came when all before it had been read */
	u8 overlaps;	   /* how often both sides were seen to speak at once; saturates */
};

struct socket_state {
	u32 generation; /* of the configuration at the look-up of `owners` */
	u32 port_pair;	/* and the ports: both change when a socket is bound or connected */
	owners_t owners;
	owners_t process_owners; /* of the process that claimed it, before the filters */
	u32 is_candidate;	 /* perhaps a target process's; known once it touches the socket */
	u32 is_seq_known;	 /* known_seq is set */
	u64 connect_ns;		 /* SYN sent; 0 when no connect is pending */
	u64 handshake_ns;	 /* duration measured before the owner was known */
#if defined(MODULE_RX) || defined(MODULE_TCP)
	u32 read_seq;  /* end of the bytes that were read, when it was last seen */
	u32 read_from; /* and when it was seen before */
	u32 is_read_seq_known;
	u32 unused;
#endif
#if TRACE
	struct user user; /* the last that used it */
#endif
#ifdef MODULE_TCP
	struct turns turns;
	u64 established_ns; /* of a passive open, until accept() returns it */
	u32 listener_drops; /* of a listener, when it was last read */
	u32 timeout_seq;    /* snd_una and icsk_retransmits at the last time-out */
	u8 timeout_number;
	u8 is_listener_known; /* listener_drops is set */
	u8 is_window_closed;  /* ours; the peer's */
	u8 is_peer_window_closed;
	u8 is_window_low; /* ours may have closed since */
#endif
#ifdef MODULE_RX
	u32 head; /* next to read, next to fill: free-running */
	u32 tail;
	u32 known_seq; /* end of the bytes that are accounted for, as lost or unmatched too */
	u32 skipped;   /* segments that left the queue unseen */
	u32 reader;    /* the thread that read last; 0: not known */
	u32 reserved;
	owners_t owners_left; /* of the segment that is recorded now */
	struct segment segments[SEGMENTS];
#endif
#ifdef MODULE_TX
	u32 handed_head; /* oldest, next to fill: free-running */
	u32 handed_tail;
	struct handoff handed[HANDOFFS];
#endif
};

BYTES_OF(socket_state);
#if TYPED
BPF_SK_STORAGE(socket_states, struct socket_state_bytes);
#else
/* The address of a freed socket may be reused: states end in on_state_change() and by LRU. */
BPF_TABLE("lru_hash", u64, struct socket_state_bytes, socket_states, TRACE ? 4096 : 8192);
BPF_PERCPU_ARRAY(empty_states, struct socket_state_bytes, 1);
#endif

static __always_inline struct socket_state *find_state(struct sock *sk)
{
#if TYPED
	/* Most sockets are no target's and have no storage: then one load suffices. */
	if (!READ(sk, sk_bpf_storage))
		return 0;
	return (struct socket_state *)socket_states.sk_storage_get(sk, 0, 0);
#else
	u64 key = (u64)sk;

	return (struct socket_state *)socket_states.lookup(&key);
#endif
}

static __always_inline struct socket_state *create_state(struct sock *sk)
{
#if TYPED
	return (struct socket_state *)socket_states.sk_storage_get(sk, 0,
								   BPF_SK_STORAGE_GET_F_CREATE);
#else
	u64 key = (u64)sk;
	u32 zero = 0;
	struct socket_state_bytes *empty = empty_states.lookup(&zero);

	if (!empty)
		return 0;
	socket_states.update(&key, empty);
	return (struct socket_state *)socket_states.lookup(&key);
#endif
}

/* The wider type of a TCP socket that is a program's argument; NULL for any other. */
static __always_inline struct tcp_sock *get_tcp_sock(struct sock *sk)
{
#if TYPED
	return bpf_skc_to_tcp_sock(sk); /* 5.9+ */
#else
	return (struct tcp_sock *)sk;
#endif
}

static __always_inline u32 protocol_of(struct sock *sk)
{
	u16 family = READ(sk, __sk_common.skc_family);
	u32 protocol;

	if (family != AF_INET && family != AF_INET6)
		return 0;
	protocol = READ(sk, sk_protocol);
	if (protocol == IPPROTO_TCP)
		return PROTOCOL_TCP;
	return protocol == IPPROTO_UDP ? PROTOCOL_UDP : 0;
}

/* Request and time-wait sockets are shorter structs: only their common part may be read. */
static __always_inline bool is_full(struct sock *sk)
{
	u8 state = READ(sk, __sk_common.skc_state);

	return state != TCP_NEW_SYN_RECV && state != TCP_TIME_WAIT;
}

static __always_inline u64 cgroup_id_of(struct sock *sk)
{
#ifdef HAVE_sock_cgroup_data_cgroup
	struct cgroup *cgroup = READ(sk, sk_cgrp_data.cgroup);
#else
	/* before 5.16: a pointer unless bit 0 marks it as net_cls data, sock_cgroup_ptr() */
	u64 value = READ(sk, sk_cgrp_data.val);
	struct cgroup *cgroup = value & 1 ? 0 : (struct cgroup *)value;
#endif
	struct kernfs_node *node;

	if (!cgroup)
		return 0;
	node = READ(cgroup, kn);
	return READ(node, id);
}

static __always_inline owners_t look_up_owners(struct sock *sk, struct netns_entry *netns)
{
	u32 protocol = protocol_of(sk);
	u16 local = READ(sk, __sk_common.skc_num);
	u16 remote = bpf_ntohs(READ(sk, __sk_common.skc_dport));
	u64 id = cgroup_id_of(sk);
	owners_t *by_cgroup = cgroups.lookup(&id);
	owners_t owners = add_owners(0, netns->owners, protocol, local, remote);

	return by_cgroup ? add_owners(owners, *by_cgroup, protocol, local, remote) : owners;
}

/* A kernel thread may use a socket for a process: a parser of messages does, strp_work(). */
static __always_inline bool is_kernel_thread(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u32 flags = 0;

	bpf_probe_read_kernel(&flags, sizeof(flags), &task->flags);
	return flags & PF_KTHREAD;
}

/* In the context of the process that reads, writes or connects: is the socket a target's? */
static __always_inline void claim(struct sock *sk, struct socket_state *state,
				  struct config *config)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	owners_t *owners = processes.lookup(&tgid);

	if (is_kernel_thread())
		return;
	state->is_candidate = 0;
	if (!owners)
		return;
	state->process_owners = *owners;
	state->owners = add_owners(state->owners, *owners, protocol_of(sk),
				   READ(sk, __sk_common.skc_num),
				   bpf_ntohs(READ(sk, __sk_common.skc_dport)));
#ifdef MODULE_TCP
	if (state->handshake_ns) {
		record_for(config, state->owners, STAGE_TCP_HANDSHAKE, state->handshake_ns);
		state->handshake_ns = 0;
	}
#endif
}

static __always_inline struct socket_state *resolve_state(struct sock *sk,
							  struct socket_state *state,
							  struct config *config, u32 port_pair)
{
	struct netns_entry *netns = find_netns(config, netns_of_socket(sk));
	owners_t owners = 0;
	bool is_candidate = false;

	if (netns && netns->flags & NETNS_WATCHED) {
		owners = look_up_owners(sk, netns);
		is_candidate = netns->flags & NETNS_PROCESSES;
	}
	if (!state) {
		if (!owners && !is_candidate)
			return 0;
		state = create_state(sk);
		if (!state)
			return 0;
	}
	if (!state->owners && !state->is_candidate) { /* its events were not seen */
#if defined(MODULE_RX) || defined(MODULE_TCP)
		state->is_read_seq_known = 0;
#endif
#ifdef MODULE_TCP
		state->turns.is_known = 0;
		state->turns.request_ns = 0;
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

/* The state of a socket that is, or may be, a target's; NULL for all others. */
static __always_inline struct socket_state *get_state(struct sock *sk, struct config *config)
{
	struct socket_state *state = find_state(sk);
	u32 port_pair = READ(sk, __sk_common.skc_portpair);

	if (state && state->generation == config->generation && state->port_pair == port_pair)
		return state->owners || state->is_candidate ? state : 0;
	return resolve_state(sk, state, config, port_pair);
}

/* The same; `is_own`: in the application's own context, where its process is known too. */
static __always_inline struct socket_state *get_used_state(struct sock *sk, struct config *config,
							   bool is_own)
{
	struct socket_state *state = get_state(sk, config);

	if (!state || !is_own)
		return state;
	if (state->is_candidate)
		claim(sk, state, config);
#if TRACE
	note_user(&state->user);
#endif
	return state->owners ? state : 0;
}

static __always_inline struct socket_state *get_own_state(struct sock *sk, struct config *config)
{
	return get_used_state(sk, config, true);
}

/*
 * True in the context that holds a TCP socket's lock, lock_sock(): a process, or a kernel thread. A
 * softirq takes the spinlock alone and leaves the owner as it is, which is nobody.
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
