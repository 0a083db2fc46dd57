/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The common part of all modules: access to kernel memory, the configuration, the CPU's context.
 *
 * TYPED 1: programs are bound to tracepoints by BTF ("tp_btf", 5.5+), so the arguments are typed,
 * a field is read with one load, and sockets carry our state (bpf_sk_storage_get() in tracing
 * programs: 5.11+, kernel commit 8e4597c627fb). TYPED 0: plain raw tracepoints (4.17+), reads
 * through bpf_probe_read_kernel(), and a hash keyed by the socket's address.
 */

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/*
 * The helper itself, 5.5+. Where addresses in /proc/kallsyms are hidden, as from an agent without
 * CAP_SYSLOG, bcc takes bpf_probe_read() for it. Programs on cgroups may not call that one.
 */
#define bpf_probe_read_kernel ((long (*)(void *, u32, const void *))BPF_FUNC_probe_read_kernel)

#if TYPED
#define READ(pointer, field) ((pointer)->field)
#else
#define READ(pointer, field)                                                       \
	({                                                                         \
		typeof((pointer)->field) _value;                                   \
		bpf_probe_read_kernel(&_value, sizeof(_value), &(pointer)->field); \
		_value;                                                            \
	})
#endif

/* Of a program in a process: the thread. READ() works on it; the helper is as old as TYPED, 5.11+. */
#if TYPED
#define current_task() (((struct task_struct * (*)(void)) BPF_FUNC_get_current_task_btf)())
#else
#define current_task() ((struct task_struct *)bpf_get_current_task())
#endif

/* A field of an object whose type the verifier does not know, such as skb->sk. */
#define PEEK(pointer, field)                                                       \
	({                                                                         \
		typeof((pointer)->field) _value = 0;                               \
		bpf_probe_read_kernel(&_value, sizeof(_value), &(pointer)->field); \
		_value;                                                            \
	})

/*
 * A map's value as bytes. bcc compiles functions that print and scan a map's values, member by
 * member and each element of an array (BPFModule::annotate()). For large values this is a quarter
 * of the time to compile, and the functions are not called. An array of bytes is one member.
 */
#define BYTES_OF(name)                         \
	struct name##_bytes {                  \
		u8 bytes[sizeof(struct name)]; \
	}

/*
 * Flags of a network namespace. NETNS_HOST: the node's own, packets of pods pass through it.
 * NETNS_WATCHED: sockets of targets live here. NETNS_PROCESSES: among them targets chosen by process.
 */
struct netns_entry {
	u32 inum;
	u16 flags;
	u16 next;   /* number of another entry with the same low bits; 0: none */
	u64 owners; /* of every socket in it (owners_t); mostly none */
};

/*
 * The elements of a slot in one half of `stats`: that of a CPU follows from the low bits of its
 * number.
 */
struct shards {
	u16 first; /* beyond all elements: the slot is not in use */
	u16 mask;
};

/*
 * Written by the agent, but for `is_driver_used`; read by every program. Mapped into the agent's memory.
 *
 * The network namespaces are looked up for every packet of the node, so they are an array that
 * needs one load, instead of a hash: inode numbers are assigned one after another, so their low
 * bits are hardly ever equal.
 */
struct config {
	u32 epoch;	    /* 0 or 1: which half of `stats` is written now */
	u32 generation;	    /* changes with the targets: sockets look up their slots again */
	u32 sample_mask;    /* a packet counts if (random & mask) == 0; NO_PACKETS: none counts */
	u8 sees_sends;	    /* a hook of tcp_sendmsg_locked() is attached */
	u8 reads_listeners; /* on_listener() is: no event of a listener needs to be checked */
	u8 sees_arrivals; /* programs on devices see what arrives: the tracepoint's does nothing */
	u8 sees_departures;  /* the same of what departs */
	u8 sees_completions; /* programs see drivers free the packets that they sent */
	u8 sees_segments;    /* programs on cgroups see them: the tracepoint's does nothing */
	u8 slot_bits; /* all slots in use differ in the low bits of slot + 1, so many: see notes.h */
	u8 reserved[5];
	/*
	 * The number of the time slice and when it began, if programs that run for each packet are
	 * attached for parts of the time; 0: always. What they noted in a slice before may have ended
	 * unseen.
	 */
	u64 slice;
	u64 slice_ns;
	/*
	 * The bounds between an octave's positions, by the leading bits of a mantissa below its
	 * highest: so few numbers begin alike that at most one bound is among them. The lowest byte is
	 * the number of bounds below them all. Written before the first slot is assigned.
	 */
	u64 bucket_bounds[1 << BOUND_BITS];
	struct shards
		shards[2 * MAX_SLOTS]; /* of each half: written before it is made the present */
	u16 netns_first[NETNS_FIRST];  /* by low bits: number of an entry; 0: none */
	struct netns_entry netns[MAX_NETNS]; /* [0]: see find_netns() */
	u8 obstacles
		[NR_OBSTACLES]; /* written by programs, see note_obstacle(); erased by the agent */
	u64 unknown_kind;	/* of a device: as many letters; for OBSTACLE_UNKNOWN_DEVICE */
	u64 is_driver_used;	/* written by programs: a target's packet was given to a driver */
};
BYTES_OF(config);
BPF_F_TABLE("array", u32, struct config_bytes, configuration, 1, BPF_F_MMAPABLE);

static __always_inline struct config *get_config(void)
{
	u32 zero = 0;

	return (struct config *)configuration.lookup(&zero);
}

/* Why a part of some packets' path is not measured: the coverage of its stages says so. */
static __always_inline void note_obstacle(struct config *config, u32 obstacle)
{
	if (!config->obstacles[obstacle])
		config->obstacles[obstacle] = 1;
}

/*
 * The same of one pod's devices or packets, by inum << 32 | obstacle: only targets there lack that part.
 * The value: the kind of the device, if that is the obstacle. The agent deletes what it has read. Of
 * namespaces without a target it is there too, so the oldest are replaced.
 */
BPF_TABLE("lru_hash", u64, u64, netns_obstacles, MAX_NETNS);

/* `inum`: the network namespace of the pod; the host's is the whole node's. */
static __always_inline void note_obstacle_in(struct config *config, u32 inum, u32 obstacle,
					     u64 kind)
{
	u64 key = (u64)inum << 32 | obstacle;

	if (inum == HOST_NETNS)
		note_obstacle(config, obstacle);
	else if (!netns_obstacles.lookup(&key))
		netns_obstacles.update(&key, &kind);
}

/* mptcp_recvmsg() and mptcp_sendmsg(), net/mptcp/protocol.c, pass the hooks of TCP by. */
#ifdef HAVE_tcp_sock_is_mptcp
#define IS_OF_MPTCP(read, tp) (read(tp, is_mptcp))
#else
#define IS_OF_MPTCP(read, tp) false
#endif

/*
 * A kernel pointer as a number. The verifier forbids arithmetic on typed pointers but for the
 * difference of two, and the configuration's address is the same for all programs.
 */
static __always_inline u64 identity_of(void *pointer, struct config *config)
{
#if TYPED
	return (u64)pointer - (u64)config;
#else
	return (u64)pointer;
#endif
}

/* The same of a sent packet, in this time slice: so that nothing from one before is taken for it. */
static __always_inline u64 sent_identity(void *pointer, struct config *config)
{
	return identity_of(pointer, config) ^ config->slice << 48;
}

/* Where it is in a table of 2**bits elements, direct-mapped by the address; objects are cache lines. */
static __always_inline u32 place_of(u64 identity, u32 bits)
{
	return ((u32)(identity >> 6) * 0x9e3779b1U) >> (32 - bits);
}

/*
 * The state of this CPU. Neither softirqs nor hard IRQs nest, and each field has one writer:
 * `hard_irq_ns` and `raised_ns` with interrupts disabled, the others in softirqs.
 */
struct cpu_context {
	u64 net_rx_ns;	 /* entry of the last softirq if that was NET_RX; see net_rx_entry() */
	u64 received_id; /* identity of the skb last received where targets live */
	u64 hard_irq_ns; /* entry of the hard IRQ handler that runs now; 0 outside of one */
	u64 raised_ns;	 /* of the hard IRQ that raised NET_RX, until the softirq's entry */
	u64 run_queue;	 /* address of `runqueues`; 0: not known yet */
	u32 irq_ns;	 /* of the running NET_RX: how long from that hard IRQ on; 0: from none */
	u16 in_softirq;	 /* where the kernel's own count cannot be read */
	u16 was_pending; /* NET_RX, when that hard IRQ handler began */
	u64 device;	 /* for which `leads_to_host` is: see begins_in_host() */
	u32 leads_to_host;
	u32 undelivered; /* see count_reception() */
	u64 operations;	 /* for which `unwraps` is: see is_from_tunnel() */
	u64 unwraps;
	u64 batch_ns; /* the entry of its softirq */
	u64 config;   /* the configuration's address, see number_of_config() */
};
BPF_PERCPU_ARRAY(cpu_contexts, struct cpu_context, 1);

static __always_inline struct cpu_context *get_cpu_context(void)
{
	u32 zero = 0;

	return cpu_contexts.lookup(&zero);
}

/*
 * What identity_of() subtracts, for pointers that were read with PEEK(): to the verifier they are
 * numbers, from which no pointer may be subtracted. What was in a map is a number, too.
 */
static __always_inline u64 number_of_config(struct cpu_context *cpu, struct config *config)
{
#if TYPED
	*(volatile u64 *)&cpu->config = (u64)config;
	return *(volatile u64 *)&cpu->config;
#else
	return 0;
#endif
}

#if defined(WITH_PREEMPT_COUNT) || defined(WITH_SOFTIRQ_PENDING)

/*
 * The kernel's own variables of this CPU are in one area, at distances that BTF has. Its place is
 * known by one of them, the run queue, to which the current task leads: set_task_rq(),
 * kernel/sched/sched.h. (By its name a program may only reach a variable with CONFIG_KALLSYMS_ALL.)
 */
#define READ_PERCPU(run_queue, variable)                                              \
	({                                                                            \
		variable##_TYPE _value = 0;                                           \
		bpf_probe_read_kernel(&_value, sizeof(_value),                        \
				      (void *)((run_queue) + (variable##_DISTANCE))); \
		_value;                                                               \
	})

static __always_inline u64 find_run_queue(struct cpu_context *cpu)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct cfs_rq *cfs_rq = 0;
	u64 run_queue = 0;

	bpf_probe_read_kernel(&cfs_rq, sizeof(cfs_rq), &task->se.cfs_rq);
	bpf_probe_read_kernel(&run_queue, sizeof(run_queue), &cfs_rq->rq);
	if (READ_PERCPU(run_queue, CPU_NUMBER) == bpf_get_smp_processor_id())
		cpu->run_queue = run_queue;
	return cpu->run_queue;
}

static __always_inline u64 run_queue_of(struct cpu_context *cpu)
{
	return cpu->run_queue ? cpu->run_queue : find_run_queue(cpu);
}

#endif

/* in_serving_softirq(), include/linux/preempt.h: `current` is the process that was interrupted. */
static __always_inline bool is_serving_softirq(struct cpu_context *cpu)
{
#ifdef WITH_PREEMPT_COUNT
	return READ_PERCPU(run_queue_of(cpu), PREEMPT_COUNT) & SOFTIRQ_OFFSET;
#else
	return cpu->in_softirq;
#endif
}

/* The entry of the NET_RX softirq that runs now; 0 outside of it. */
static __always_inline u64 net_rx_entry(struct cpu_context *cpu)
{
	return cpu->net_rx_ns && is_serving_softirq(cpu) ? cpu->net_rx_ns : 0;
}

#ifndef offsetof
#define offsetof(type, member) __builtin_offsetof(type, member)
#endif

static __always_inline bool is_after(u32 one, u32 other)
{
	return (s32)(one - other) > 0;
}

/*
 * NULL for a namespace without anything to measure. The first entry stands for all that have none
 * of their own, while a target may begin in any of them.
 */
static __always_inline struct netns_entry *find_netns(struct config *config, u32 inum)
{
	u32 number = config->netns_first[inum & (NETNS_FIRST - 1)];
	struct netns_entry *entry = &config->netns[number & (MAX_NETNS - 1)];
	int hop;

	/* A chain ends with the first entry, as it does where nothing has these low bits. */
	for (hop = 0; hop <= NETNS_HOPS && number && entry->inum != inum; hop++) {
		number = entry->next;
		entry = &config->netns[number & (MAX_NETNS - 1)];
	}
	return entry->flags ? entry : 0;
}

static __always_inline u32 netns_of(struct net_device *dev)
{
	struct net *net = READ(dev, nd_net.net);

	return READ(net, ns.inum);
}

/* The same of a device of any type. */
static __always_inline u32 netns_at(struct net_device *dev)
{
	struct net *net = PEEK(dev, nd_net.net);

	return PEEK(net, ns.inum);
}

/* Any kind of socket: request and time-wait sockets have it too. */
static __always_inline u32 netns_of_socket(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return READ(net, ns.inum);
}

/* The same of a socket whose address is a number. */
static __always_inline u32 netns_of_number(u64 sk)
{
	struct sock *socket = (struct sock *)sk;
	struct net *net = PEEK(socket, __sk_common.skc_net.net);

	return PEEK(net, ns.inum);
}
