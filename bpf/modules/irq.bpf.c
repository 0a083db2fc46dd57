/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module irq: the CPU time of hard IRQs and softirqs on the node, with any cause.
 *
 *   softirq_raise --softwait--> softirq_entry --softrun--> softirq_exit
 *   irq_handler_entry --hard--> irq_handler_exit
 *
 * A row is a histogram: one for each vector and stage, one for each handler, the last for handlers
 * without a row. As in `stats` there are two halves, by the configuration's epoch, and the agent reads
 * and zeroes the inactive one.
 */

struct node_row {
	struct stage_stats stats;
	u32 beyond[PLACES - POSITIONS]; /* see PLACES */
};
BYTES_OF(node_row);
BPF_F_TABLE("array", u32, struct node_row_bytes, node_stats, 2 * NODE_ROWS, BPF_F_MMAPABLE);

struct handler_name {
	char text[HANDLER_NAME_BYTES];
};

/*
 * A handler is identified by its number and its irqaction. Nothing is deleted, so a handler whose
 * device was removed keeps its row until the module is unloaded. The agent reads `handler_names`;
 * the CPU that inserts a row's name there first has the row.
 */
BPF_HASH(handler_rows, u64, u32, MAX_HANDLERS);
BPF_HASH(handler_names, u32, struct handler_name, MAX_HANDLERS);

struct vector_times {
	u64 raised_ns[NR_SOFTIRQ_VECTORS]; /* first raise since the last entry; 0: none */
	u64 again_ns[NR_SOFTIRQ_VECTORS];  /* the last one after that */
	u64 entered_ns;
};
BPF_PERCPU_ARRAY(vector_times, struct vector_times, 1);

static __always_inline struct vector_times *get_vector_times(u32 vector)
{
	u32 zero = 0;

	return vector < NR_SOFTIRQ_VECTORS ? vector_times.lookup(&zero) : 0;
}

static __always_inline struct stage_stats *get_row(u32 row)
{
	struct config *config = get_config();
	u32 index = row;

	if (!config)
		return 0;
	index += (config->epoch & 1) * NODE_ROWS;
	return (struct stage_stats *)node_stats.lookup(&index);
}

static __always_inline void raise_vector(u32 vector)
{
	struct vector_times *times = get_vector_times(vector);

	if (!times)
		return;
	if (times->raised_ns[vector]) {
		times->again_ns[vector] = bpf_ktime_get_ns();
	} else {
		times->raised_ns[vector] = bpf_ktime_get_ns();
		times->again_ns[vector] = 0;
	}
}

static __always_inline void record_in(struct stage_stats *row, u64 ns)
{
	struct config *config = get_config();

	if (config)
		record(config, row, ns);
}

/*
 * A raise while the vector is pending changes nothing, with one exception. After handle_softirqs()
 * took the pending vectors and before this vector's turn, a raise makes it run twice: then the
 * second run's raise is the last one before the first run.
 */
static __always_inline void enter_vector(u32 vector)
{
	struct vector_times *times = get_vector_times(vector);
	struct stage_stats *row;
	u64 raised_ns;

	if (!times)
		return;
	times->entered_ns = bpf_ktime_get_ns();
	raised_ns = times->raised_ns[vector];
	if (raised_ns) {
		times->raised_ns[vector] = 0;
	} else {
		raised_ns = times->again_ns[vector];
		times->again_ns[vector] = 0;
	}
	row = get_row(ROW_SOFTWAIT + vector);
	if (!row)
		return;
	if (raised_ns)
		record_in(row, times->entered_ns - raised_ns);
	else
		__sync_fetch_and_add(&row->missing[UNMATCHED], 1);
}

static __always_inline void exit_vector(u32 vector)
{
	struct vector_times *times = get_vector_times(vector);
	struct stage_stats *row;
	u64 entered_ns;

	if (!times || !times->entered_ns)
		return;
	entered_ns = times->entered_ns;
	times->entered_ns = 0;
	row = get_row(ROW_SOFTRUN + vector);
	if (row)
		record_in(row, bpf_ktime_get_ns() - entered_ns);
}

/* A row for a handler that was not seen before; the last row if no other is free. */
static __always_inline u32 find_row(u64 key, struct irqaction *action)
{
	struct handler_name name = {};
	u32 number, row;

	bpf_probe_read_kernel_str(name.text, sizeof(name.text), READ(action, name));
	for (number = 0; number < MAX_HANDLERS; number++) {
		row = number;
		if (handler_names.insert(&row, &name))
			continue;
		handler_rows.update(&key, &row);
		return row;
	}
	return MAX_HANDLERS;
}

static __always_inline void record_handler(u32 irq, struct irqaction *action, u64 ns)
{
	u64 key = (u64)irq << 48 ^ identity_of(action, get_config());
	u32 *known = handler_rows.lookup(&key);
	u32 number = known ? *known : find_row(key, action);
	struct stage_stats *row = get_row(ROW_HANDLERS + number);

	if (!row)
		return;
	if (number < MAX_HANDLERS)
		record_in(row, ns);
	else
		__sync_fetch_and_add(&row->missing[LOST], 1);
}
