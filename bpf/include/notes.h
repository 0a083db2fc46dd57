/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Notes: what one event leaves for a later one, such as that this node dropped a segment, until it is sent
 * again. A note may never be taken, so tables of notes are of a fixed size, and the newest ones stay.
 *
 * Such a table has a part for each slot. So a target that makes very many notes loses its own, and no other
 * one's. (A hash by LRU has one order for all, and drops others' entries too early on many CPUs.) A part is in
 * sets of a cache line: a note's key chooses its set, where the oldest one makes room.
 *
 * The parts are of equal size, and there are as many as slots may be in use: `slot_bits` of struct config. It
 * never decreases. Where it increases, notes are lost, which happens nine times at most.
 *
 * No lock: of two CPUs that write to one set at the same moment, one may lose its note, or find the value
 * of its neighbour. All without a branch: see choose().
 */

#define NOTES 4		 /* of a set; must be a power of two */
#define NOTE_SET_BITS 12 /* of a table: 256 KiB, at least 32 notes for each slot */

struct note_set {
	u64 tags[NOTES]; /* of their keys, below 2**63; 0: none. The newest one is first */
	u64 values[NOTES];
};
BYTES_OF(note_set);
#define NOTE_TABLE(name) BPF_ARRAY(name, struct note_set_bytes, 1 << NOTE_SET_BITS)

static __always_inline u64 mix(u64 content, u64 value)
{
	return (content ^ value) * 0x9e3779b97f4a7c15ULL;
}

/* The tag of a key of two numbers. */
static __always_inline u64 tag_of_note(u64 one, u64 other)
{
	return mix(mix(0, one), other) >> 1;
}

/* The number of the set of a note. Sockets of no known owner have a part of their own, the first one. */
static __always_inline u32 set_of_note(struct config *config, owners_t owners, u64 tag)
{
	u64 bits = config->slot_bits & 15, part = owners & ((1U << bits) - 1);

	return part << (NOTE_SET_BITS - bits) | tag >> (63 - NOTE_SET_BITS + bits);
}

/* The place of a tag in its set; NOTES: it is not there. */
static __always_inline u64 place_of_note(volatile struct note_set *set, u64 tag)
{
	u64 place = NOTES;
	u32 i;

	/*
	 * No constant: of `0 or -1` AND a constant the verifier follows both, maybe_fork_scalars(),
	 * kernel/bpf/verifier.c, 7.0+ and stable kernels.
	 */
	asm volatile("" : "+r"(place));
#pragma unroll
	for (i = 0; i < NOTES; i++)
		place = choose(is_equal(set->tags[i], tag), i, place);
	return place;
}

/* The same of a value; of several, the oldest one. */
static __always_inline u64 place_of_value(volatile struct note_set *set, u64 value)
{
	u64 place = NOTES;
	u32 i;

	asm volatile("" : "+r"(place));
#pragma unroll
	for (i = 0; i < NOTES; i++)
		place = choose(is_equal(set->values[i], value), i, place);
	return place;
}

static __always_inline u64 is_note(u64 place)
{
	return is_below_0(place - NOTES);
}

/* As an index, which the barrier keeps the compiler from bounding in another register. */
static __always_inline u64 index_of_note(u64 place)
{
	asm volatile("" : "+r"(place));
	return place & (NOTES - 1);
}

/* 0: there is no such note. */
static __always_inline u64 value_of_note(volatile struct note_set *set, u64 place)
{
	return set->values[index_of_note(place)] & (0 - is_note(place));
}

static __always_inline void erase_note(volatile struct note_set *set, u64 place)
{
	set->tags[index_of_note(place)] &= is_note(place) - 1;
}

/* Write a note, or replace it, as the newest one. `place`: as place_of_note() has it. */
static __always_inline void write_note(volatile struct note_set *set, u64 place, u64 tag, u64 value)
{
	u64 is_moved;
	u32 i;

	place = choose(is_note(place), place, place_of_note(set, 0));
	place = choose(is_note(place), place, NOTES - 1);
#pragma unroll
	for (i = NOTES - 1; i > 0; i--) {
		is_moved = is_below_0((u64)i - 1 - place);
		set->tags[i] = choose(is_moved, set->tags[i - 1], set->tags[i]);
		set->values[i] = choose(is_moved, set->values[i - 1], set->values[i]);
	}
	set->values[0] = value;
	set->tags[0] = tag;
}
