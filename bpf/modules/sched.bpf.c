/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module sched: the time in which a thread of a target was runnable and did not run.
 *
 *   sched_wakeup, or sched_switch away from a thread that could go on --runqueue--> sched_switch to it
 *
 * A thread's events all happen with its run queue locked, so that its state has one writer at a time
 * and the next one sees what the last one wrote. Under that lock nothing may be allocated (the
 * allocator may have to wake a thread), hence a preallocated hash, not task storage.
 *
 * What a thread waited for: waits.bpf.c.
 */

#define STRANGER_BITS 14
#define WAITS 4 /* must be a power of two */

/* A thread's waits: the sum of all, and the times of the last few. */
struct history {
	u64 waited_ns;
	u64 tid;
	struct wait waits[WAITS];
};

struct thread {
	u64 description; /* at the look-up of `owners` */
	owners_t owners;
	u64 waiting_since; /* 0: it runs or sleeps */
	u64 waits_seen;	   /* free-running: the number of the next place in `history` */
	u32 slot;	   /* that it counts for, and the share that it is in: of `thread_shares` */
	u32 share;
	u64 cgroup_id;
	struct place_of_wait place;
	struct history history;
};

/* The targets' threads, by their id. Deleted when a thread leaves its CPU for the last time. */
BPF_HASH(threads, u32, struct thread, MAX_THREADS);

/*
 * How many of `threads` are taken. The elements are those of the slots, one for all, and one of each
 * namespace (of Kubernetes): its share of the table, which no other one can take. Threads beyond that
 * are in the share for all. Those that find no place, or are more than a target may have, are lost.
 *
 * Each member has one side alone that writes it; so no update is lost. For the agent deletes
 * threads, too: they may sleep for ever, when their slot is another target's already.
 */
struct thread_share {
	/* by programs */
	u32 threads; /* and those that the agent has deleted */
	u32 refused; /* of a slot: how often */
	/* by the agent */
	u32 most;
	u32 forgotten; /* how many it has deleted */
	u32 share;     /* of a slot: the element of its namespace */
};
BPF_F_TABLE("array", u32, struct thread_share, thread_shares, THREAD_SHARE_PLACES, BPF_F_MMAPABLE);

static __always_inline struct thread_share *thread_share_at(u32 place)
{
	return thread_shares.lookup(&place);
}

static __always_inline bool has_place(struct thread_share *share)
{
	return share && (s32)(share->threads - share->forgotten) < (s32)share->most;
}

static __always_inline void forget_thread(struct thread *thread, u32 tid)
{
	struct thread_share *of_slot = thread_share_at(thread->slot);
	struct thread_share *share = thread_share_at(thread->share);

	if (threads.delete(&tid)) /* the agent was faster */
		return;
	if (of_slot)
		__sync_fetch_and_add(&of_slot->threads, -1);
	if (share)
		__sync_fetch_and_add(&share->threads, -1);
}

/*
 * The descriptions of threads of no target, direct-mapped by their id: most threads of a node, for
 * which one load must suffice.
 */
BPF_ARRAY(strangers, u64, 1 << STRANGER_BITS);

/*
 * A number that changes whenever the thread may have become another target's: with its cgroup
 * (cgroup_migrate_execute() gives it another css_set, kernel/cgroup/cgroup.c), with its network
 * namespace (switch_task_namespaces(), kernel/nsproxy.c), and with the agent's tables.
 */
static __always_inline u64 describe_thread(struct config *config, struct task_struct *task, u32 tid)
{
	u64 cgroups_id = identity_of(READ(task, cgroups), config);
	u64 namespaces_id = identity_of(READ(task, nsproxy), config);

	return (cgroups_id ^ (namespaces_id << 17) ^ ((u64)tid << 32) ^ config->generation) | 1;
}

static __always_inline owners_t add_all(owners_t owners, owners_t others)
{
	int i;

#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, others >>= OWNER_BITS)
		if (others)
			owners = add_owner(owners, first_slot(others));
	return owners;
}

/* Ports and protocols do not matter: a thread is not a socket. */
static __always_inline owners_t look_up_thread(struct config *config, struct task_struct *task)
{
	struct css_set *set = READ(task, cgroups);
	struct cgroup *cgroup = READ(set, dfl_cgrp);
	u32 tgid = READ(task, tgid);
	struct nsproxy *namespaces = READ(task, nsproxy); /* NULL once it exits */
	owners_t *by_process = processes.lookup(&tgid);
	owners_t owners = owners_of_cgroup(config, cgroup);
	struct netns_entry *by_netns = 0;

	if (by_process)
		owners = add_all(owners, *by_process);
	if (namespaces) {
		struct net *net = READ(namespaces, net_ns);

		by_netns = find_netns(config, READ(net, ns.inum));
	}
	return by_netns ? add_all(owners, by_netns->owners) : owners;
}

static __always_inline struct thread *create_thread(struct config *config, owners_t owners, u32 tid,
						    u64 description, u64 cgroup_id)
{
	struct thread made = { .description = description, .owners = owners };
	struct thread_share *of_slot, *share;

	made.cgroup_id = cgroup_id;
	made.slot = first_slot(owners);
	made.history.tid = tid;
	of_slot = thread_share_at(made.slot);
	if (!of_slot)
		return 0;
	made.share = of_slot->share;
	share = thread_share_at(made.share);
	if (!has_place(share)) {
		made.share = THREADS_FOR_ALL;
		share = thread_share_at(made.share);
	}
	if (has_place(of_slot) && has_place(share)) {
		/* First: as soon as the thread is there, the agent may delete it. */
		__sync_fetch_and_add(&of_slot->threads, 1);
		__sync_fetch_and_add(&share->threads, 1);
		if (!threads.update(&tid, &made))
			return threads.lookup(&tid);
		__sync_fetch_and_add(&of_slot->threads, -1);
		__sync_fetch_and_add(&share->threads, -1);
	}
	__sync_fetch_and_add(&of_slot->refused, 1);
	lost_for(config, owners, STAGE_SCHED_RUNQUEUE);
	return 0;
}

/* A thread that is unknown, or whose owners (`thread`) may have changed. */
static __always_inline struct thread *meet_thread(struct config *config, struct task_struct *task,
						  struct thread *thread, u32 tid, u64 description)
{
	u32 index = tid & ((1 << STRANGER_BITS) - 1);
	owners_t owners = look_up_thread(config, task);
	u64 *stranger = strangers.lookup(&index);
	struct css_set *set = READ(task, cgroups);
	u64 cgroup_id = owners ? id_of_cgroup(READ(set, dfl_cgrp)) : 0;

	if (thread && owners) {
		thread->description = description;
		thread->owners = owners;
		thread->cgroup_id = cgroup_id;
		return thread;
	}
	if (owners)
		return create_thread(config, owners, tid, description, cgroup_id);
	if (thread)
		forget_thread(thread, tid);
	if (stranger)
		*stranger = description;
	return 0;
}

/* The state of a target's thread; NULL for all others. */
static __always_inline struct thread *get_thread(struct config *config, struct task_struct *task)
{
	u32 tid = READ(task, pid), index = tid & ((1 << STRANGER_BITS) - 1);
	u64 description, *stranger;
	struct thread *thread;

	if (!tid) /* the idle threads */
		return 0;
	stranger = strangers.lookup(&index);
	description = describe_thread(config, task, tid);
	if (!stranger || *stranger == description)
		return 0;
	thread = threads.lookup(&tid);
	if (thread && thread->description == description)
		return thread;
	return meet_thread(config, task, thread, tid, description);
}

/*
 * A wake-up changes nothing for a thread that waits already, or that was about to sleep and runs
 * on: ttwu_runnable(), kernel/sched/core.c.
 */
static __always_inline void begin_wait(struct config *config, struct thread *thread,
				       struct task_struct *task)
{
	if (thread->waiting_since)
		return;
#ifdef HAVE_task_struct_on_cpu
	if (READ(task, on_cpu))
		return;
#endif
	note_place(config, &thread->place, task);
	thread->waiting_since = bpf_ktime_get_ns();
}

static __always_inline void end_wait(struct config *config, struct thread *thread,
				     struct task_struct *task)
{
	u64 begin_ns = thread->waiting_since, end_ns;
	struct wait *wait = &thread->history.waits[thread->waits_seen & (WAITS - 1)];
	struct wait_for_cgroup whose = { .owners = thread->owners };

	if (!begin_ns) { /* it waited before we watched */
		unmatched_for(config, thread->owners, STAGE_SCHED_RUNQUEUE, 1);
		return;
	}
	end_ns = bpf_ktime_get_ns();
	thread->waiting_since = 0;
	thread->waits_seen++;
	thread->history.waited_ns += end_ns - begin_ns;
	wait->begin_ns = begin_ns;
	wait->end_ns = end_ns;
	record_for(config, thread->owners, STAGE_SCHED_RUNQUEUE, end_ns - begin_ns);
	whose.cgroup_id = thread->cgroup_id;
	explain_wait(config, task, &thread->place, whose, *wait);
}

/* ttwu_do_wakeup(), kernel/sched/core.c: the thread is on the run queue of the CPU it will run on */
int on_sched_wakeup(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct config *config = get_config();
	struct thread *thread;

	if (!config)
		return 0;
	thread = get_thread(config, task);
	if (thread)
		begin_wait(config, thread, task);
	return 0;
}

/*
 * wake_up_new_task(), kernel/sched/core.c; after sched_process_fork. The id may be one that another
 * thread had.
 */
int on_sched_wakeup_new(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct config *config = get_config();
	u32 tid = READ(task, pid);
	struct thread *thread;

	if (!config)
		return 0;
	thread = threads.lookup(&tid);
	if (thread)
		forget_thread(thread, tid);
	thread = meet_thread(config, task, 0, tid, describe_thread(config, task, tid));
	if (thread)
		begin_wait(config, thread, task);
	return 0;
}

static __always_inline u64 state_of(struct task_struct *task)
{
#ifdef HAVE_task_struct___state
	return READ(task, __state);
#else
	return READ(task, state);
#endif
}

/*
 * A preempted thread that is switched away from is runnable, independent of its state. Otherwise
 * the state is the one that __schedule() acted upon, since a waker cannot make it TASK_RUNNING
 * again without the run queue's lock, kernel/sched/core.c.
 *
 * TASK_DEAD is the end of it: do_task_dead(), kernel/sched/core.c. sched_process_exit is not a safe
 * place to delete it. Since Linux 7.0 (kernel commit a46023d5616e) a program can be preempted at a
 * tracepoint, and then the kernel skips the same program for other threads of this CPU:
 * bpf_prog_get_recursion_context(). Here the run queue is locked.
 */
static __always_inline void switch_away(struct config *config, struct thread *thread,
					struct task_struct *task, bool preempted)
{
	u64 state = state_of(task);
	u32 tid = thread->history.tid;

	if (thread->waiting_since) /* how it came to run was not seen */
		unmatched_for(config, thread->owners, STAGE_SCHED_RUNQUEUE, 1);
	if (state & TASK_DEAD) {
		forget_thread(thread, tid);
		return;
	}
	note_place(config, &thread->place, task);
	thread->waiting_since = preempted || !state ? bpf_ktime_get_ns() : 0;
}

/* __schedule(), kernel/sched/core.c: (preempt, prev, next), in this order on every kernel */
int on_sched_switch(u64 *ctx)
{
	struct task_struct *previous = (struct task_struct *)ctx[1];
	struct task_struct *next = (struct task_struct *)ctx[2];
	struct config *config = get_config();
	struct thread *thread;

	if (!config)
		return 0;
	thread = get_thread(config, previous);
	if (thread)
		switch_away(config, thread, previous, ctx[0] & 1);
	thread = get_thread(config, next);
	if (thread)
		end_wait(config, thread, next);
	note_run(config, next, !READ(next, pid), thread ? thread->owners : 0);
	return 0;
}

#ifdef MODULE_RX /* the part of its packets' time that this module knows */

/*
 * Most sockets are read by one thread. So a queued packet notes how long the socket's last reader
 * has waited in its life: if the same thread reads it, the difference is the answer.
 */
static __always_inline void note_last_reader(struct segment *segment, u32 tid)
{
	struct thread *thread = threads.lookup(&tid);
	u64 waiting_since;

	segment->reader = 0;
	if (!thread)
		return;
	segment->reader = tid;
	segment->reader_waited_ns = thread->history.waited_ns;
	waiting_since = thread->waiting_since;
	if (waiting_since)
		segment->reader_waited_ns += bpf_ktime_get_ns() - waiting_since;
}

/* The history of the thread that reads now: a copy, while the program runs. No thread has id 0. */
BPF_PERCPU_ARRAY(readers, struct history, 1);

static __always_inline void note_reader(u32 tid)
{
	u32 zero = 0;
	struct history *reader = readers.lookup(&zero);
	struct thread *thread = threads.lookup(&tid);

	if (reader && thread)
		*reader = thread->history;
	else if (reader)
		__builtin_memset(reader, 0, sizeof(*reader));
}

/* The reader's last few waits, as far as after `queued_ns`: exact unless it waited more often. */
static __always_inline u64 last_waits_since(struct history *reader, u64 queued_ns)
{
	u64 ns = 0;
	int i;

#pragma unroll
	for (i = 0; i < WAITS; i++) {
		u64 begin_ns = reader->waits[i].begin_ns, end_ns = reader->waits[i].end_ns;

		ns += at_least_0(end_ns - begin_ns - at_least_0(queued_ns - begin_ns));
	}
	return ns;
}

/*
 * The part of `wait_ns`, since the packet was queued, in which its reader waited for a CPU; it runs
 * now. Another CPU may have noted the packet in the middle of a change: hence the upper limit.
 */
static __always_inline u64 reader_waited(volatile struct segment *segment, u64 wait_ns)
{
	u32 zero = 0;
	struct history *reader = readers.lookup(&zero);
	u64 is_another, since_queued, ns;

	if (!reader || !reader->tid)
		return 0;
	since_queued = at_least_0(reader->waited_ns - segment->reader_waited_ns);
	ns = last_waits_since(reader, segment->queued_ns);
	is_another = (0 - (reader->tid ^ segment->reader)) >> 63;
	asm volatile("" : "+r"(is_another));
	ns = (ns & (0 - is_another)) | (since_queued & (is_another - 1));
	return wait_ns - at_least_0(wait_ns - ns);
}

#endif
