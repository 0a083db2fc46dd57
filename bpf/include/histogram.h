/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Histograms: base-2 exponential, schema 3, the positions of latencyprobe/domain/histogram.py.
 *
 * An element of one array holds all stages and counters of a target, so that a packet costs one
 * lookup however many stages it has. The agent flips the epoch, waits until no program uses the old
 * half any more, and reads and zeroes it at leisure through its own mapping.
 *
 * Elements that no slot needs are given to those in use as *shards*, so that CPUs that count for
 * one target do not write the same cache lines: struct shards, common.h. A per-CPU array would
 * multiply megabytes by the CPU count instead. CPUs may have to share a shard, and a softirq may
 * interrupt a process that counts in it, so additions are atomic. Minimum and maximum are plain
 * compare-and-store; a lost race costs the smaller of two simultaneous extremes at most.
 */

#define ABOVE_ALL (HIGHEST_NS + 1)

/* Why a sample is missing from a stage; latencyprobe/domain/measurement.py explains each. */
enum missing { LOST, UNMATCHED, CLAMPED, NR_MISSING };

/* The minimum as TOP_NS less it, so that zeroed memory is neutral. Durations are below TOP_NS. */
enum extreme { MAX, TOP_LESS_MIN, UNUSED_EXTREME, NO_EXTREME };

struct stage_stats {
	u64 sum;
	u64 extremes[NO_EXTREME + 1]; /* the last one is not read: see keep_greater() */
	u32 missing[NR_MISSING];
	u32 counts[POSITIONS];
	u32 pad; /* keeps the next stage's u64 aligned */
};

/*
 * An index is bounded by a mask, of PLACES. No position reaches the places beyond POSITIONS, which
 * belong to what follows in the element: even those of the last stage are within it.
 */

struct slot_stats {
	u64 counters[NR_COUNTERS];
	struct stage_stats stages[NR_STAGES];
	u32 drops[NR_DROP_REASONS]; /* by enum skb_drop_reason; the last: all reasons beyond it */
};
BYTES_OF(slot_stats);
BPF_F_TABLE("array", u32, struct slot_stats_bytes, stats, 2 * MAX_SLOTS, BPF_F_MMAPABLE);

/*
 * The slots that a socket or packet counts in: up to MAX_OWNERS, each as slot + 1 in OWNER_BITS bits,
 * packed from the lowest on. Several if probes with different filters share a target; 0 is no slot.
 */
typedef u64 owners_t;
#define first_slot(owners) (((u32)(owners) & ((1U << OWNER_BITS) - 1)) - 1)

/*
 * A duration at or under the last bound, 69.8 s, has 37 significant bits, so the mantissa's low 8 bits are zero and
 * "above the bound" is exact on the upper 56 bits. As a subtraction it costs no branch, neither at
 * run time nor in the verifier's count; the barrier keeps the compiler from making one of it.
 */
static __always_inline u64 is_above(u64 mantissa, u64 threshold)
{
	u64 difference = (threshold >> 8) - mantissa;

	asm volatile("" : "+r"(difference));
	return difference >> 63;
}

/*
 * Position of the highest set bit of a number below 2**32, by halving, without a branch. (LLVM 14
 * fails on clz for BPF.)
 */
static __always_inline u32 log2_of(u64 value)
{
	u32 log2 = 0, half;
	int bits;

#pragma unroll
	for (bits = 16; bits; bits /= 2) {
		u64 difference = ((1ULL << bits) - 1) - value;

		asm volatile("" : "+r"(difference));
		half = (difference >> 63) * bits;
		value >>= half;
		log2 += half;
	}
	return log2;
}

/* Without a branch, as is_above() and for the same reason. */
static __always_inline u64 is_below_0(u64 number)
{
	asm volatile("" : "+r"(number));
	return number >> 63;
}

/* 1 or 0: two numbers below 2**63 are equal. Without a branch, as is_above() and for the same reason. */
static __always_inline u64 is_equal(u64 one, u64 other)
{
	return is_below_0((one ^ other) - 1);
}

/* `ns`, or 0 where it is negative. Without a branch, as is_above() and for the same reason. */
static __always_inline u64 at_least_0(u64 ns)
{
	return ns & (is_below_0(ns) - 1);
}

/*
 * Without a branch, which the barrier keeps the compiler from making of it: the verifier would follow
 * each path through each round of a loop.
 */
static __always_inline u64 choose(u64 is_first, u64 one, u64 other)
{
	u64 mask = 0 - is_first;

	asm volatile("" : "+r"(mask));
	return other ^ ((one ^ other) & mask);
}

/* A value below the first bound is counted as that bound. It is not above the last one. */
static __always_inline u32 position_below_last(u64 ns, u64 *bucket_bounds)
{
	u32 octave, leading;
	u64 mantissa, bound;

	ns = (1ULL << FIRST_OCTAVE) + at_least_0(ns - (1ULL << FIRST_OCTAVE));
	octave = FIRST_OCTAVE + log2_of(ns >> FIRST_OCTAVE);
	mantissa = (ns << (63 - octave)) >> 8;
	leading = (mantissa >> (55 - BOUND_BITS)) & ((1 << BOUND_BITS) - 1);
	bound = bucket_bounds[leading];
	return (octave - FIRST_OCTAVE) * 8 + (bound & 0xff) + is_above(mantissa, bound);
}

/* The same of any value: one above the last bound is counted as that. */
static __always_inline u32 position_of(u64 ns, u64 *bucket_bounds)
{
	ns = ns << 1 >> 1 | ns >> 63 << (LAST_OCTAVE + 1); /* never negative as a signed number */
	ns = ABOVE_ALL - at_least_0(ABOVE_ALL - ns);
	return position_below_last(ns, bucket_bounds);
}

/* NULL for a slot that is not in use any more. */
static __always_inline struct slot_stats *get_stats(struct config *config, u32 slot)
{
	u32 half = (config->epoch & 1) * MAX_SLOTS, place = half + (slot & (MAX_SLOTS - 1)), index;
	struct shards *shards;

	/* bounded once more: of a sum that is made by OR, older verifiers know no bound */
	asm volatile("" : "+r"(place));
	shards = &config->shards[place & (2 * MAX_SLOTS - 1)];
	index = half + shards->first + (bpf_get_smp_processor_id() & shards->mask);
	return (struct slot_stats *)stats.lookup(&index);
}

/*
 * `owners` and one more, unless there is no room. Without a branch: the verifier knows how many there
 * are at most, follows what it knows, and would verify all that follows for each number of them.
 */
static __always_inline owners_t add_owner(owners_t owners, u32 slot)
{
	owners_t last = owners >> (64 - OWNER_BITS), more = owners << OWNER_BITS | (slot + 1);
	u64 is_full = -is_below_0(-last);

	asm volatile("" : "+r"(is_full));
	return more ^ ((more ^ owners) & is_full);
}

/*
 * The greater of two numbers below 2**63 in `extremes[which]`. Where it is there already, the store goes
 * elsewhere: without a branch, and without writing over what another CPU has stored since then.
 */
static __always_inline void keep_greater(struct stage_stats *stage, enum extreme which, u64 value)
{
	u64 is_greater = (stage->extremes[which] - value) >> 63, place;

	asm volatile("" : "+r"(is_greater));
	place = NO_EXTREME - is_greater * (NO_EXTREME - which);
	asm volatile("" : "+r"(place));
	stage->extremes[place & NO_EXTREME] = value;
}

/*
 * At the end of a branch: the verifier compares what it knows there with an earlier visit, and stops. It
 * does so only two jumps after the last time, is_state_visited(), kernel/bpf/verifier.c. This is one
 * more jump for it, which it then removes: opt_remove_nops(), 5.1+.
 */
static __always_inline void end_branch(void)
{
	asm volatile("goto +0");
}

static __always_inline void record_at(struct stage_stats *stage, u64 position, u64 ns)
{
	/* keep the compiler from indexing with another register than the one that is bounded */
	asm volatile("" : "+r"(position));
	position &= PLACES - 1;
	__sync_fetch_and_add(&stage->sum, ns);
	__sync_fetch_and_add(&stage->counts[position], 1);
	keep_greater(stage, MAX, ns);
	keep_greater(stage, TOP_LESS_MIN, TOP_NS - ns);
	end_branch();
}

/* Without a branch: in a loop over packets the verifier would follow each path of each round. */
static __always_inline void record_checked(struct config *config, struct stage_stats *stage, u64 ns)
{
	record_at(stage, position_of(ns, config->bucket_bounds), ns);
}

/* The same of a duration that saturates(): the fewer instructions, the fewer to verify. */
static __always_inline void record_saturated(struct config *config, struct stage_stats *stage,
					     u32 ns)
{
	record_at(stage, position_below_last(ns, config->bucket_bounds), ns);
}

static __always_inline void record(struct config *config, struct stage_stats *stage, u64 ns)
{
	if (ns > TOO_LONG_NS)
		__sync_fetch_and_add(&stage->missing[UNMATCHED], 1);
	else
		record_checked(config, stage, ns);
}

/*
 * The functions for all owners are unrolled: before 6.7 the verifier regards a loop whose variable is
 * on the stack as endless, states_maybe_looping(), kernel/bpf/verifier.c.
 */
static __always_inline struct slot_stats *stats_of_first(struct config *config, owners_t owners)
{
	return owners ? get_stats(config, first_slot(owners)) : 0;
}

static __always_inline void record_for(struct config *config, owners_t owners, u32 stage, u64 ns)
{
	int i;

#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, owners >>= OWNER_BITS) {
		struct slot_stats *slot = stats_of_first(config, owners);

		if (slot)
			record(config, &slot->stages[stage], ns);
	}
}

/* The same of a wait that may be longer than TOO_LONG_NS, and no mistake. */
static __always_inline void record_long_for(struct config *config, owners_t owners, u32 stage,
					    u64 ns)
{
	int i;

#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, owners >>= OWNER_BITS) {
		struct slot_stats *slot = stats_of_first(config, owners);

		if (slot)
			record_checked(config, &slot->stages[stage], ns);
	}
}

static __always_inline void add_for(struct config *config, owners_t owners, u32 counter, u64 count)
{
	int i;

#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, owners >>= OWNER_BITS) {
		struct slot_stats *slot = stats_of_first(config, owners);

		if (slot)
			__sync_fetch_and_add(&slot->counters[counter], count);
	}
}

/* Two counters in one loop: the verifier follows each loop over the owners for every path before it. */
static __always_inline void add_both_for(struct config *config, owners_t owners, u32 counter,
					 u64 count, u32 other, u64 amount)
{
	int i;

#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, owners >>= OWNER_BITS) {
		struct slot_stats *slot = stats_of_first(config, owners);

		if (!slot)
			continue;
		__sync_fetch_and_add(&slot->counters[counter], count);
		__sync_fetch_and_add(&slot->counters[other], amount);
	}
}

/* One more of a counter, and its time in another one. */
static __always_inline void add_time_for(struct config *config, owners_t owners, u32 counter,
					 u32 time_counter, u64 ns)
{
	add_both_for(config, owners, counter, 1, time_counter, ns);
}

static __always_inline void count_for(struct config *config, owners_t owners, u32 counter)
{
	add_for(config, owners, counter, 1);
}

static __always_inline void miss_for(struct config *config, owners_t owners, u32 stage,
				     enum missing missing, u32 count)
{
	int i;

#pragma unroll
	for (i = 0; i < MAX_OWNERS; i++, owners >>= OWNER_BITS) {
		struct slot_stats *slot = stats_of_first(config, owners);

		if (slot)
			__sync_fetch_and_add(&slot->stages[stage].missing[missing], count);
	}
}

static __always_inline void lost_for(struct config *config, owners_t owners, u32 stage)
{
	miss_for(config, owners, stage, LOST, 1);
}

static __always_inline void unmatched_for(struct config *config, owners_t owners, u32 stage,
					  u32 count)
{
	miss_for(config, owners, stage, UNMATCHED, count);
}

/* A packet counts in full or not at all; the agent knows the ratio from the mask. */
static __always_inline bool is_sampled(struct config *config)
{
	u32 mask = config->sample_mask;

	return mask != NO_PACKETS && (!mask || !(bpf_get_prandom_u32() & mask));
}

/* True while what begins is measured: not so at the two ends of a time slice. */
static __always_inline bool is_open(struct config *config)
{
	return config->sample_mask != NO_PACKETS;
}

/* The other end of something was not seen. */
static __always_inline void miss_in_slice(struct config *config, owners_t owners, u32 stage)
{
	if (is_open(config))
		unmatched_for(config, owners, stage, 1);
}

/* True if each packet is seen, so that one that was not is missing. */
static __always_inline bool sees_all(struct config *config)
{
	return !config->sample_mask && !config->slice;
}
