/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Traced packets: those that took longer than a limit go to a ring buffer, with all their stages.
 *
 * TRACE 1 while a client traces, or the agent for itself. TRACE 0: the functions below are empty and
 * the maps do not exist, so that measuring without a trace costs neither time nor memory.
 *
 * record_part() notes a stage and counts it: all stages that are recorded together with a packet
 * are part of its event, at the stage's own index.
 */

#if TRACE

#define RING_BYTES (1 << 19) /* some 2,500 packets between two reads of the agent */

/*
 * The packet's process, from the socket's own context: the caller of recvmsg(), sendmsg(),
 * connect().
 */
struct user {
	u32 tgid; /* 0: not known */
	u32 pid;
	char comm[16];
};

struct endpoints {
	u8 local[16]; /* IPv4: the first four */
	u8 remote[16];
	u16 local_port;
	u16 remote_port;
	u16 family;   /* 0: not known */
	u16 protocol; /* PROTOCOL_* */
};

struct trace_event {
	u64 ended_ns;
	struct user user;
	struct endpoints endpoints;
	u64 cpu;
	owners_t owners;	      /* the slots that the packet counted in */
	u64 stages[NR_PACKET_STAGES]; /* duration + 1; 0: the packet has no such stage */
};

/*
 * Mapped into the agent's memory, which writes all above `second` and reads what is below.
 * One element for all CPUs: only slow packets of a traced target touch the counts.
 */
struct trace_control {
	u64 limits[NR_PACKET_STAGES]; /* a packet is slow if one stage reaches its limit */
	u8 slots[MAX_SLOTS];	      /* 1: traced */
	u64 per_second;		      /* the maximum that is reported */
	u64 second;		      /* the one that `this_second` counts in */
	u64 this_second;
	u64 reported;
	u64 limited; /* not reported: more than per_second */
	u64 lost;    /* not reported: the ring was full */
};
BYTES_OF(trace_control);
BPF_F_TABLE("array", u32, struct trace_control_bytes, trace_control, 1, BPF_F_MMAPABLE);

/* The agent reads it; a full ring loses the newest. BPF_MAP_TYPE_RINGBUF: 5.8+ */
BPF_RINGBUF_OUTPUT(trace_ring, RING_BYTES / PAGE_SIZE);

/* Only in the context of the process itself. */
static __always_inline void note_user(struct user *user)
{
	u64 id = bpf_get_current_pid_tgid();

	user->tgid = id >> 32;
	user->pid = id;
	bpf_get_current_comm(user->comm, sizeof(user->comm));
}

static __always_inline void read_socket_endpoints(struct sock *sk, u32 protocol,
						  struct endpoints *ends)
{
	ends->family = READ(sk, __sk_common.skc_family);
	ends->protocol = protocol;
	ends->local_port = READ(sk, __sk_common.skc_num);
	ends->remote_port = bpf_ntohs(READ(sk, __sk_common.skc_dport));
	if (ends->family == AF_INET) {
		*(u32 *)ends->local = READ(sk, __sk_common.skc_rcv_saddr);
		*(u32 *)ends->remote = READ(sk, __sk_common.skc_daddr);
		return;
	}
#ifdef HAVE_sock_common_skc_v6_daddr
	bpf_probe_read_kernel(ends->local, sizeof(ends->local), &sk->__sk_common.skc_v6_rcv_saddr);
	bpf_probe_read_kernel(ends->remote, sizeof(ends->remote), &sk->__sk_common.skc_v6_daddr);
#endif
}

/*
 * A datagram's ends, by its headers, since its socket may not be connected. With extension headers
 * they stay unknown: then the socket must suffice. `type`: skb->protocol.
 */
static __always_inline void read_datagram_endpoints(u16 type, unsigned char *header, bool is_sent,
						    struct endpoints *ends)
{
	u8 *from = is_sent ? ends->local : ends->remote;
	u8 *to = is_sent ? ends->remote : ends->local;
	u8 first = 0, protocol = 0;
	u16 ports[2] = {};

	ends->family = 0;
	if (type == bpf_htons(ETH_P_IP)) {
		bpf_probe_read_kernel(&first, sizeof(first), header);
		bpf_probe_read_kernel(&protocol, sizeof(protocol), header + 9);
		bpf_probe_read_kernel(from, 4, header + 12);
		bpf_probe_read_kernel(to, 4, header + 16);
		bpf_probe_read_kernel(ports, sizeof(ports), header + (first & 15) * 4);
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		bpf_probe_read_kernel(&protocol, sizeof(protocol), header + 6);
		bpf_probe_read_kernel(from, 16, header + 8);
		bpf_probe_read_kernel(to, 16, header + 24);
		bpf_probe_read_kernel(ports, sizeof(ports), header + 40);
	}
	if (protocol != IPPROTO_UDP)
		return;
	ends->family = type == bpf_htons(ETH_P_IP) ? AF_INET : AF_INET6;
	ends->protocol = PROTOCOL_UDP;
	ends->local_port = bpf_ntohs(ports[is_sent ? 0 : 1]);
	ends->remote_port = bpf_ntohs(ports[is_sent ? 1 : 0]);
}

static __always_inline bool is_traced(struct trace_control *control, owners_t owners)
{
	for (; owners; owners >>= OWNER_BITS)
		if (control->slots[first_slot(owners) & (MAX_SLOTS - 1)])
			return true;
	return false;
}

/* Without a branch a stage: the verifier would follow them all. */
static __always_inline bool is_slow(struct trace_control *control, struct trace_event *event)
{
	u64 reaches = 0, is_wrong = 0;
	int stage;

#pragma unroll
	for (stage = 0; stage < NR_PACKET_STAGES; stage++) {
		u64 below = control->limits[stage] - event->stages[stage];
		u64 wrong = TOO_LONG_NS + 1 - event->stages[stage];

		asm volatile("" : "+r"(below), "+r"(wrong));
		reaches |= below;
		is_wrong |= wrong;
	}
	return reaches >> 63 && !(is_wrong >> 63);
}

/*
 * Reserve an event if this packet is to be reported; the caller fills in the rest and submits it.
 * Two CPUs at the turn of a second, or at the last place in it, may report one packet too many.
 */
static __always_inline bool is_to_be_reported(struct trace_event *event, owners_t owners)
{
	u32 zero = 0;
	struct trace_control *control = (struct trace_control *)trace_control.lookup(&zero);
	u64 second;

	if (!control || !is_slow(control, event) || !is_traced(control, owners))
		return false;
	event->ended_ns = bpf_ktime_get_ns();
	second = event->ended_ns / 1000000000;
	if (control->second != second) {
		control->second = second;
		control->this_second = 0;
	}
	if (control->this_second >= control->per_second) {
		__sync_fetch_and_add(&control->limited, 1);
		return false;
	}
	__sync_fetch_and_add(&control->this_second, 1);
	event->owners = owners;
	return true;
}

static __always_inline void submit_event(struct trace_event *event)
{
	u32 zero = 0;
	struct trace_control *control = (struct trace_control *)trace_control.lookup(&zero);

	if (!control)
		return;
	event->cpu = bpf_get_smp_processor_id();
	if (trace_ring.ringbuf_output(event, sizeof(*event), 0))
		__sync_fetch_and_add(&control->lost, 1);
	else
		__sync_fetch_and_add(&control->reported, 1);
}

#endif /* TRACE */

/*
 * The events under construction. Programs that end received packets run in a process's context.
 * Those that end sent packets may run in a softirq that interrupted it, even while a process freed
 * one: so each has its own.
 */
enum event_kind { EVENT_RECEIVED, EVENT_SENT, EVENT_COMPLETED, NR_EVENT_KINDS };

#if TRACE
BPF_PERCPU_ARRAY(trace_events, struct trace_event, NR_EVENT_KINDS);
#else
struct trace_event;
#endif

static __always_inline struct trace_event *get_event(enum event_kind kind)
{
#if TRACE
	u32 index = kind;

	return trace_events.lookup(&index);
#else
	return 0;
#endif
}

static __always_inline struct trace_event *begin_event(enum event_kind kind)
{
	struct trace_event *event = get_event(kind);

#if TRACE
	if (event)
		__builtin_memset(event->stages, 0, sizeof(event->stages));
#endif
	return event;
}

/* Count a stage of a packet whose total is plausible, and note it for the packet's event. */
static __always_inline void record_part(struct config *config, struct slot_stats *slot,
					struct trace_event *event, u32 stage, u64 ns)
{
	record_checked(config, &slot->stages[stage], ns);
#if TRACE
	if (event)
		event->stages[stage] = ns + 1;
#endif
}
