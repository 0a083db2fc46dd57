/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The targets: from a cgroup or a process to slots. (Network namespaces: struct config.)
 *
 * Hashes, filled by the agent; only `processes` also grows and shrinks in the kernel, with fork and
 * exit: so it has room made ahead. Their sizes limit the agent, which checks them before it writes.
 */

/*
 * The others need no room ahead: the agent gets an error if there is no memory. (Before 6.1 the kernel warns
 * of such a map in a program at a raw tracepoint: check_map_prog_compatibility(), kernel/bpf/verifier.c.)
 */
#define FROM_AGENT (TYPED ? BPF_F_NO_PREALLOC : 0)

BPF_F_TABLE("hash", u64, owners_t, cgroups, MAX_CGROUPS, FROM_AGENT);
BPF_HASH(processes, u32, owners_t, MAX_PROCESSES);

/*
 * A cgroup below a target's belongs to the target from its mkdir() on: the agent lists it later. So
 * the levels above are looked up, this many. Containers are one level below their pods; those in a
 * container are two to five levels further down.
 */
#define CGROUP_LEVELS 6
#define STRANGER_CGROUP_BITS 10

/*
 * The descriptions of cgroups of no target, direct-mapped by their id: a stranger's packet, where
 * targets live, pays one load.
 */
BPF_ARRAY(stranger_cgroups, u64, 1 << STRANGER_CGROUP_BITS);

static __always_inline u64 id_of_cgroup(struct cgroup *cgroup)
{
	struct kernfs_node *node = PEEK(cgroup, kn);

	return PEEK(node, id);
}

/*
 * The owners of a cgroup, or of the nearest one above it that has some; 0: it is no target's. The agent
 * writes those of a target above another one to both.
 */
static __always_inline owners_t owners_of_cgroup(struct config *config, struct cgroup *cgroup)
{
	u64 id = id_of_cgroup(cgroup), mixed = id * 0x9e3779b97f4a7c15ULL;
	/* The table's changes end with a new generation. */
	u64 description = mixed ^ config->generation;
	u32 index = mixed >> (64 - STRANGER_CGROUP_BITS);
	u64 *stranger = stranger_cgroups.lookup(&index);
	owners_t *owners = 0;
	int level;

	if (!stranger || *stranger == description)
		return 0;
	for (level = 0; level <= CGROUP_LEVELS; level++) {
		struct cgroup_subsys_state *above = PEEK(cgroup, self.parent);

		owners = cgroups.lookup(&id);
		if (owners)
			break;
		/* Above the root, what is read from NULL is 0: a test more costs the verifier more. */
		cgroup = PEEK(above, cgroup);
		id = id_of_cgroup(cgroup);
	}
	if (owners)
		return *owners;
	*stranger = description;
	return 0;
}

struct slot_filter {
	u16 protocols; /* 0: every one */
	u16 has_ports; /* 0: every port */
};
BPF_ARRAY(filters, struct slot_filter, MAX_SLOTS);
/*
 * slot << 16 | port: present if the port passes the slot's filter. (A loop costs the verifier
 * more.)
 */
BPF_F_TABLE("hash", u32, u8, filter_ports, MAX_FILTER_PORTS, FROM_AGENT);

static __always_inline bool passes_filter(u32 slot, u32 protocol, u16 local, u16 remote)
{
	struct slot_filter *filter = filters.lookup(&slot);
	u32 local_key = slot << 16 | local, remote_key = slot << 16 | remote;

	if (!filter)
		return false;
	if (filter->protocols && !(filter->protocols & protocol))
		return false;
	return !filter->has_ports || filter_ports.lookup(&local_key) ||
	       filter_ports.lookup(&remote_key);
}

/* `owners` and those of `others` that the filters let pass. */
static __always_inline owners_t add_owners(owners_t owners, owners_t others, u32 protocol,
					   u16 local, u16 remote)
{
	for (; others; others >>= OWNER_BITS)
		if (passes_filter(first_slot(others), protocol, local, remote))
			owners = add_owner(owners, first_slot(others));
	return owners;
}

/*
 * kernel_clone(), kernel/fork.c: in the parent's context, before the child first runs. The map may
 * still have its id from another process, which ended before the agent added it, or whose end was
 * skipped, as may happen since Linux 7.0 (switch_away(), sched.bpf.c).
 */
int on_process_fork(u64 *ctx)
{
	struct task_struct *parent = (struct task_struct *)ctx[0];
	struct task_struct *child = (struct task_struct *)ctx[1];
	u32 parent_tgid = READ(parent, tgid), child_tgid = READ(child, tgid);
	owners_t *owners, copy;

	if (parent_tgid == child_tgid)
		return 0;
	owners = processes.lookup(&parent_tgid);
	if (owners) {
		copy = *owners;
		processes.update(&child_tgid, &copy);
	} else if (processes.lookup(&child_tgid)) {
		processes.delete(&child_tgid);
	}
	return 0;
}

/* do_exit(), kernel/exit.c: `live` is already decremented, 0 for the last thread */
int on_process_exit(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct signal_struct *signal = READ(task, signal);
	u32 tgid = READ(task, tgid);

	if (READ(signal, live.counter) == 0 && processes.lookup(&tgid))
		processes.delete(&tgid);
	return 0;
}
