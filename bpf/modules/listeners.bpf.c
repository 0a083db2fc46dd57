/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module tcp: the connections that a full accept queue turns away.
 *
 * No event reports a SYN that is turned away: tcp_conn_request() frees it as if it were used up. So
 * counts of the kernel's are read, and only when the agent reads: a program here iterates over all
 * open files, and no packet runs it.
 */

static __always_inline bool is_listener(struct sock *sk)
{
	return READ(sk, __sk_common.skc_state) == TCP_LISTEN;
}

/*
 * Where the two counts below cannot be read: the listener's own one, when another of its events is
 * seen. It has more than what found the accept queue full.
 */
static __always_inline void note_listener_drops(struct config *config, struct sock *sk,
						struct socket_state *state)
{
	u32 drops = READ(sk, sk_drops.counter);

	if (state->is_listener_known && drops != state->turns.listener_drops)
		add_for(config, state->owners, COUNTER_ACCEPT_QUEUE_OVERFLOWS,
			drops - state->turns.listener_drops);
	state->is_listener_known = 1;
	state->turns.listener_drops = drops;
}

#ifdef WITH_LISTEN_OVERFLOWS

/* Its own address, as a number: that of another pointer is a difference from it. */
BPF_ARRAY(addresses, u64, 1);

/*
 * TcpExtListenOverflows of the socket's namespace: counts of each CPU, at an address that is
 * relative to the CPU's own area. A per-CPU map shows where that is: the address of a CPU's element,
 * less the relative one, bpf_array.pptrs[0]. The barriers keep the compiler from sums of pointers,
 * which the verifier forbids.
 */
static __always_inline u32 listen_overflows(struct sock *sk, u64 *address)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);
	u64 map = CPU_CONTEXTS_MAP, relative = 0, counts = 0, at, count;
	u32 zero = 0, cpu, sum = 0;
	void *here;

	asm volatile("" : "+r"(map));
	*(volatile u64 *)address = (u64)address;
	at = map - (u64)address;
	asm volatile("" : "+r"(at));
	at += *(volatile u64 *)address;
	bpf_probe_read_kernel(&relative, sizeof(relative), (void *)(at + PERCPU_ADDRESSES));
	bpf_probe_read_kernel(&counts, sizeof(counts), &net->mib.net_statistics);
	counts += LISTEN_OVERFLOWS_NUMBER * sizeof(count);
	for (cpu = 0; cpu < CPU_NUMBERS; cpu++) { /* a constant: the verifier follows no more */
		here = bpf_map_lookup_percpu_elem((void *)map, &zero, cpu); /* 5.19+ */
		if (!here)
			break;
		at = (u64)here - (u64)address;
		asm volatile("" : "+r"(at));
		at += *(volatile u64 *)address - relative + counts;
		count = 0;
		bpf_probe_read_kernel(&count, sizeof(count), (void *)at);
		sum += count;
	}
	return sum;
}

/*
 * A listener's own count, tcp_listendrop(), include/net/tcp.h, has more than what found the accept
 * queue full: SYNs that found the queue of requests full, and whatever tcp_check_req() discards
 * (resets, the bare ACK of a deferred accept). The namespace's count has those of other listeners.
 * So it is the lesser of the two.
 */
static __always_inline void count_overflows(struct config *config, struct sock *sk,
					    struct socket_state *state)
{
	u32 zero = 0, overflows, drops, own, all;
	u64 *address = addresses.lookup(&zero);

	if (!address)
		return;
	overflows = listen_overflows(sk, address);
	drops = READ(sk, sk_drops.counter);
	own = drops - state->turns.listener_drops;
	all = overflows - state->turns.netns_overflows;
	if (state->is_listener_known && own && all)
		add_for(config, state->owners, COUNTER_ACCEPT_QUEUE_OVERFLOWS,
			own < all ? own : all);
	state->is_listener_known = 1;
	state->turns.listener_drops = drops;
	state->turns.netns_overflows = overflows;
}

#endif

#ifdef WITH_ON_LISTENER

/* bpf_iter__task_file, kernel/bpf/task_iter.c, 5.8+: each open file, when the agent reads them */
int on_listener(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[1];
	struct file *file = (struct file *)ctx[3];
	struct config *config = get_config();
	struct socket_state *state;
	struct turned_away away;
	struct socket *socket;
	struct sock *sk;
	u32 tgid;

	if (!task || !file || !config)
		return 0;
	socket = bpf_sock_from_file(file); /* 5.11+ */
	if (!socket)
		return 0;
	sk = READ(socket, sk);
	if (!sk || !is_listener(sk) || protocol_of(sk) != PROTOCOL_TCP)
		return 0;
	state = get_state(sk, config, &away);
	if (!state)
		return 0;
	tgid = READ(task, tgid);
	/* a process that is no target may have it open, too */
	if (state->is_candidate && processes.lookup(&tgid))
		claim(sk, state, config, tgid);
	count_overflows(config, sk, state);
	return 0;
}

#endif
