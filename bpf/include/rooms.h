/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The room of each slot in hashes that all slots share: so no target takes the entries of another one.
 *
 * The agent divides each hash between the slots, and deletes entries: kernel/runtime/slot_rooms.py. All sums
 * are free-running, and each member has one side alone that writes it.
 */
struct slot_room {
	/* by programs */
	u32 taken;   /* entries that were made so far */
	u32 refused; /* attempts to make one more */
	/* by the agent */
	u32 allowed; /* how far `taken` may get */
};
BPF_F_TABLE("array", u32, struct slot_room, slot_rooms, NR_ROOMS *MAX_SLOTS, BPF_F_MMAPABLE);

/* Take the room for an entry of this slot. Two CPUs may take the last one both. */
static __always_inline bool take_room(u32 room, u32 slot)
{
	u32 place = room * MAX_SLOTS + (slot & (MAX_SLOTS - 1));
	struct slot_room *of_slot = slot_rooms.lookup(&place);

	if (!of_slot)
		return false;
	if ((s32)(of_slot->allowed - of_slot->taken) > 0) {
		__sync_fetch_and_add(&of_slot->taken, 1);
		return true;
	}
	__sync_fetch_and_add(&of_slot->refused, 1);
	return false;
}
