/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module sched: the reasons why a thread that could run waited. Its cgroup had no quota left, or
 * other threads had the CPU on which it waited: those of its own target, or others.
 *
 * Each CPU keeps who has had it, so that a wait is explained when it ends. A switch between threads of
 * one cgroup costs two loads more, and any other one a clock reading and a store.
 */

struct wait {
	u64 begin_ns;
	u64 end_ns;
};

/*
 * A span of time in which threads of one cgroup had a CPU, until the next one begins. The CPU alone
 * writes it. Another one, to which a thread has moved, may read it in the middle of a change; so
 * durations have bounds.
 */
struct run {
	u64 begin_ns;
	u64 cgroups_id; /* identity of the css_set of the last thread */
	u64 cgroup_id;	/* 0: the CPU idles */
	owners_t owners;
};

/*
 * The last RUNS runs of each CPU, in several resolutions: of the last 6 ms, 64 ms and half second, or
 * more. Pods that talk to each other switch a CPU thousands of times a second. So a run that is shorter
 * than its resolution is given to the next one. Of such a span that one has all which runs at the
 * span's last moment: a sample, so that in the mean each one has its share. The agent makes room for
 * all CPUs.
 */
#define FINE_NS 200000
#define MIDDLE_NS 2000000
#define COARSE_NS 16000000
enum resolution { FINE, MIDDLE, COARSE }; /* RESOLUTIONS of them */
BPF_ARRAY(runs, struct run, RESOLUTIONS *RUNS);
/* How many each of them had so far, less one. */
BPF_ARRAY(runs_before, u64, RESOLUTIONS);

/*
 * How long threads of these owners waited for threads of that cgroup. The agent reads it, and deletes
 * what no longer grows. Where the first of the slots has no room, the wait counts without a name.
 */
struct wait_for_cgroup {
	owners_t owners;
	u64 cgroup_id;
};
BPF_HASH(waits_for_cgroups, struct wait_for_cgroup, u64, MAX_WAITS_FOR_CGROUPS);

/* As id_of_cgroup(), of a cgroup whose type the verifier knows: two loads. */
static __always_inline u64 id_of_known_cgroup(struct cgroup *cgroup)
{
	struct kernfs_node *node = READ(cgroup, kn);

	return READ(node, id);
}

static __always_inline struct run *run_at(u32 row, u64 number)
{
	u32 index = row * RUNS + (number & (RUNS - 1));

	return runs.lookup(&index);
}

/* One more run, or what the last one becomes if it is shorter than the resolution. */
static __always_inline bool add_run(u32 row, u64 *before, struct run *last, struct run *made,
				    u64 resolution_ns)
{
	bool is_short = made->begin_ns - last->begin_ns < resolution_ns;
	struct run *run = is_short ? last : run_at(row, *before + 1);

	if (!run)
		return false;
	if (!is_short)
		run->begin_ns = made->begin_ns;
	run->cgroups_id = made->cgroups_id;
	run->cgroup_id = made->cgroup_id;
	run->owners = made->owners;
	*before += !is_short; /* last: what is read until then is the run before */
	return !is_short;
}

static __always_inline bool is_same_run(struct run *run, struct run *made)
{
	return run->cgroup_id == made->cgroup_id && run->owners == made->owners;
}

static __always_inline void note_coarse_run(u32 row, struct run *made, u64 resolution_ns)
{
	u64 *before = runs_before.lookup(&row);
	struct run *last = before ? run_at(row, *before) : 0;

	if (last && !is_same_run(last, made))
		add_run(row, before, last, made, resolution_ns);
}

/* `owners`: those of the thread that runs from now on; 0: it is no target's, or the CPU idles. */
static __always_inline void note_run(struct config *config, struct task_struct *task, bool idles,
				     owners_t owners)
{
	u32 row = bpf_get_smp_processor_id() * RESOLUTIONS;
	u64 *before = runs_before.lookup(&row);
	struct run *last = before ? run_at(row, *before) : 0;
	struct css_set *set = READ(task, cgroups);
	struct run made = { .cgroups_id = idles ? 0 : identity_of(set, config) };

	if (!last || (last->cgroups_id == made.cgroups_id && last->owners == owners))
		return;
	made.owners = owners;
	made.cgroup_id = idles ? 0 : id_of_known_cgroup(READ(set, dfl_cgrp));
	if (is_same_run(last, &made)) {
		last->cgroups_id = made.cgroups_id; /* they differ in hierarchies of v1 */
		return;
	}
	made.begin_ns = bpf_ktime_get_ns();
	add_run(row, before, last, &made, FINE_NS);
	note_coarse_run(row + MIDDLE, &made, MIDDLE_NS);
	note_coarse_run(row + COARSE, &made, COARSE_NS);
}

/* task_cpu(), include/linux/sched.h: the CPU on whose run queue a thread is. */
static __always_inline u32 cpu_of(struct task_struct *task)
{
#if defined(HAVE_thread_info_cpu)
	return READ(task, thread_info.cpu);
#elif defined(HAVE_task_struct_cpu)
	return READ(task, cpu);
#else
	return bpf_get_smp_processor_id();
#endif
}

/*
 * Where a thread waits, and its quota's account then: of its cgroup on that CPU. All in the clock of
 * the run queue; `account` is 0 if no quota makes it wait.
 */
struct place_of_wait {
	u64 account;	     /* address of the struct cfs_rq */
	u64 throttled_ns;    /* in all */
	u64 throttled_since; /* 0: it is not throttled now */
	u64 cpu;
};

/*
 * Since 6.18 (kernel commit e1fad12dcb66) a quota that is used up takes each thread off its run queue
 * when it would return to user space, and marks it: throttle_cfs_rq_work(), kernel/sched/fair.c. What
 * is not marked can run, whatever the quota. Before, the whole cgroup left the run queue.
 */
static __always_inline void note_place(struct config *config, struct place_of_wait *place,
				       struct task_struct *task)
{
	place->cpu = cpu_of(task);
	place->account = 0;
#ifdef HAVE_cfs_rq_throttled_clock_self_time
#ifdef HAVE_task_struct_throttled
	if (!READ(task, throttled))
		return;
#endif
	{
		struct cfs_rq *cfs_rq = READ(task, se.cfs_rq);

		place->throttled_ns = READ(cfs_rq, throttled_clock_self_time);
		place->throttled_since = READ(cfs_rq, throttled_clock_self);
		*(volatile u64 *)&place->account = (u64)cfs_rq;
	}
#else
	note_obstacle(config, OBSTACLE_NO_QUOTA_ACCOUNT);
#endif
}

/*
 * How much of a wait, which ends now, a quota made. The account has the time from its first thread on,
 * tg_unthrottle_up(), kernel/sched/fair.c: less what was before this one's wait. That one is in the
 * same clock, sched_info_arrive() has not erased it yet: __schedule() calls it after the tracepoint.
 */
static __always_inline u64 throttled_in(struct place_of_wait *place, struct task_struct *task,
					u64 wait_ns)
{
#ifdef HAVE_cfs_rq_throttled_clock_self_time
	struct cfs_rq *cfs_rq = (struct cfs_rq *)*(volatile u64 *)&place->account;
	u64 ns, before_ns = 0;

	if (!cfs_rq)
		return 0;
	ns = at_least_0(PEEK(cfs_rq, throttled_clock_self_time) - place->throttled_ns);
#ifdef HAVE_task_struct_sched_info
	if (place->throttled_since)
		before_ns = at_least_0(READ(task, sched_info.last_queued) - place->throttled_since);
#endif
	ns = at_least_0(ns - before_ns);
	return wait_ns - at_least_0(wait_ns - ns);
#else
	return 0;
#endif
}

#define NO_CGROUP (1ULL << 62)

/* A wait that is being explained, from its end back to its beginning. */
struct explained_wait {
	u64 begin_ns;
	u64 until_ns;
	u64 own_ns;
	u64 others_ns;
	struct wait_for_cgroup key;
};
BPF_PERCPU_ARRAY(explained_waits, struct explained_wait, 1);

/*
 * 1 or 0: the target itself ran. By a slot in common, or by the cgroup: one with several targets in
 * it is of one pod or one service. The root is not. Without a branch, as is_above() and for the same
 * reason.
 */
static __always_inline u64 is_own(struct run *run, owners_t owners, u64 cgroup_id)
{
	u64 slot_bits = (1U << OWNER_BITS) - 1;
	u64 shares_slot = is_equal(run->owners & slot_bits, owners & slot_bits);

	return shares_slot | is_equal(run->cgroup_id, cgroup_id);
}

static __always_inline void add_for_cgroup(struct explained_wait *wait, u64 cgroup_id, u64 ns)
{
	u64 *known, none = 0;

	wait->key.cgroup_id = cgroup_id;
	known = waits_for_cgroups.lookup(&wait->key);
	if (!known) {
		if (!take_room(ROOM_WAITS_FOR_CGROUPS, first_slot(wait->key.owners)))
			return;
		waits_for_cgroups.update(&wait->key, &none);
		known = waits_for_cgroups.lookup(&wait->key);
	}
	if (known)
		__sync_fetch_and_add(known, ns);
}

/* Go back through the runs of a CPU. What is older than the last RUNS is not known. */
static __always_inline void explain_by(volatile struct explained_wait *wait, u32 row,
				       owners_t owners, u64 cgroup_id)
{
	u64 *before = runs_before.lookup(&row), last;
	u32 i;

	if (!before)
		return;
	last = *before;
	for (i = 0; i < RUNS; i++) {
		struct run *run = run_at(row, last - i);
		u64 began_before, ns, own_ns, others_ns;

		/* Those that are not there yet have never begun: nothing is before them. */
		if (!run || !run->begin_ns)
			break;
		began_before = at_least_0(run->begin_ns - wait->begin_ns);
		ns = at_least_0(wait->until_ns - wait->begin_ns - began_before);
		wait->until_ns -= ns;
		ns &= is_equal(run->cgroup_id, 0) - 1; /* the CPU was idle */
		own_ns = ns & (0 - is_own(run, owners, cgroup_id));
		others_ns = ns - own_ns;
		wait->own_ns += own_ns;
		wait->others_ns += others_ns;
		if (others_ns)
			add_for_cgroup((struct explained_wait *)wait, run->cgroup_id, others_ns);
		if (!began_before)
			break;
	}
}

/* How far the fine runs do not reach, the coarser ones may. */
static __always_inline void explain_runs(volatile struct explained_wait *wait, u32 cpu,
					 owners_t owners, u64 cgroup_id)
{
	u32 row = cpu * RESOLUTIONS;

	cgroup_id = cgroup_id == ROOT_CGROUP ? NO_CGROUP : cgroup_id;
	explain_by(wait, row + FINE, owners, cgroup_id);
	if (wait->until_ns > wait->begin_ns)
		explain_by(wait, row + MIDDLE, owners, cgroup_id);
	if (wait->until_ns > wait->begin_ns)
		explain_by(wait, row + COARSE, owners, cgroup_id);
}

static __always_inline void add_waits(struct slot_stats *slot, u64 throttled_ns,
				      struct explained_wait *wait)
{
	if (throttled_ns)
		__sync_fetch_and_add(&slot->counters[COUNTER_WAITED_THROTTLED_NS], throttled_ns);
	if (wait->own_ns)
		__sync_fetch_and_add(&slot->counters[COUNTER_WAITED_FOR_OWN_NS], wait->own_ns);
	if (wait->others_ns)
		__sync_fetch_and_add(&slot->counters[COUNTER_WAITED_FOR_OTHERS_NS],
				     wait->others_ns);
}

/*
 * A wait that ends now, with what it was for. A throttled thread waits for its quota first, and then
 * for a CPU.
 */
static __always_inline void explain_wait(struct config *config, struct task_struct *task,
					 struct place_of_wait *place, struct wait_for_cgroup whose,
					 struct wait span)
{
	u32 zero = 0;
	struct explained_wait *wait = explained_waits.lookup(&zero);
	u64 throttled_ns = throttled_in(place, task, span.end_ns - span.begin_ns);
	owners_t owners = whose.owners;
	int i;

	if (!wait)
		return;
	wait->begin_ns = span.begin_ns + throttled_ns;
	wait->until_ns = span.end_ns;
	wait->own_ns = wait->others_ns = 0;
	wait->key.owners = owners;
	explain_runs(wait, place->cpu, owners, whose.cgroup_id);
#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, owners >>= OWNER_BITS) {
		struct slot_stats *slot = stats_of_first(config, owners);

		if (slot)
			add_waits(slot, throttled_ns, wait);
	}
}
