/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The targets: from a cgroup or a process to slots. (Network namespaces: struct config.)
 *
 * Hashes, filled by the agent; only `processes` also grows and shrinks in the kernel, with fork and
 * exit. Their sizes limit the agent, which checks them before it writes.
 */

BPF_HASH(cgroups, u64, owners_t, MAX_CGROUPS);
BPF_HASH(processes, u32, owners_t, MAX_PROCESSES);

struct slot_filter {
	u16 protocols; /* 0: every one */
	u16 has_ports; /* 0: every port */
};
BPF_ARRAY(filters, struct slot_filter, MAX_SLOTS);
/*
 * slot << 16 | port: present if the port passes the slot's filter. (A loop costs the verifier
 * more.)
 */
BPF_HASH(filter_ports, u32, u8, MAX_FILTER_PORTS);

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
