// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Module tx, its end: the last device takes the packet. If its driver frees it after transmission,
 * that is the end of tx.driver and of the whole.
 *
 * A driver frees sent packets by consume_skb() or napi_consume_skb(), dropped ones by kfree_skb():
 * both have tracepoints. Some drivers free all of them by kfree_skb() (dev_kfree_skb_any()). So a
 * device is on trial until one of its packets was seen to end by consume_skb: until then packets
 * end with net_dev_start_xmit. So they do while neither event is hooked, since no target's packet got
 * to a driver for some time.
 */

#define DRIVING_BITS 12

/*
 * Packets that a driver has: as `sent`, direct-mapped by the skb's address, a cache line each. Both
 * functions by which a driver frees an skb are watched, so an element ends with its packet.
 */
struct driving {
	u64 tag; /* 0: free */
	u64 start_ns;
	u64 queue_ns;
	u64 last_queue_ns;
	u64 xmit_ns;
	owners_t owners; /* 0: on trial, the packet is recorded already */
	u64 device;	 /* the u64 of `devices`, and its place there */
	u32 device_index;
	u32 stack_ns;
#if TRACE
	struct user user;
	struct endpoints endpoints;
#endif
};
BPF_ARRAY(driving, struct driving, 1 << DRIVING_BITS);

static __always_inline struct driving *get_driving(u64 identity)
{
	u32 index = place_of(identity, DRIVING_BITS);

	return driving.lookup(&index);
}

static __always_inline u64 driving_tag(u64 identity, struct driving *packet)
{
	return identity ^ packet->xmit_ns << 1;
}

/* When a packet passed its last devices; a missing time is equal to the one before. */
struct exit_times {
	u64 start_ns;
	u64 queue_ns;
	u64 last_queue_ns; /* 0: no host between */
	u64 xmit_ns;
	u64 end_ns; /* 0: no driver that completes */
	u32 stack_ns;
};

static __always_inline void record_exit(struct config *config, struct slot_stats *slot,
					struct trace_event *event, struct exit_times *times)
{
	u64 last_queue_ns = times->last_queue_ns ? times->last_queue_ns : times->queue_ns;
	u64 end_ns = times->end_ns ? times->end_ns : times->xmit_ns;
	u64 stamp_ns = times->queue_ns;

	if (end_ns - times->start_ns > TOO_LONG_NS) { /* no part without the others */
		__sync_fetch_and_add(&slot->stages[STAGE_TX_TOTAL].missing[UNMATCHED], 1);
		return;
	}
	if (times->stack_ns != ABSENT) {
		stamp_ns -= times->stack_ns;
		record_part(config, slot, event, STAGE_TX_STACK, times->stack_ns);
	}
	if (stamp_ns != times->start_ns)
		record_part(config, slot, event, STAGE_TX_SOCKET, stamp_ns - times->start_ns);
	if (times->last_queue_ns)
		record_part(config, slot, event, STAGE_TX_HOST, last_queue_ns - times->queue_ns);
	record_part(config, slot, event, STAGE_TX_QDISC, times->xmit_ns - last_queue_ns);
	if (times->end_ns)
		record_part(config, slot, event, STAGE_TX_DRIVER, end_ns - times->xmit_ns);
	record_part(config, slot, event, STAGE_TX_TOTAL, end_ns - times->start_ns);
}

static __always_inline void record_in_all(struct config *config, owners_t owners,
					  struct trace_event *event, struct exit_times *times)
{
	for (; owners; owners >>= OWNER_BITS) {
		struct slot_stats *slot = get_stats(config, first_slot(owners));

		if (slot)
			record_exit(config, slot, event, times);
	}
}

#if TRACE
static __always_inline void report_packet(struct trace_event *event, owners_t owners,
					  struct user *user, struct endpoints *endpoints)
{
	if (!event || !is_to_be_reported(event, owners))
		return;
	event->user = *user;
	event->endpoints = *endpoints;
	submit_event(event);
}
#endif

static __always_inline void give_to_driver(struct config *config, struct sent *packet, u64 identity,
					   u64 device, u32 device_index, u64 now)
{
	struct driving *element = get_driving(identity);

	if (!element)
		return;
	if (element->tag && element->owners)
		lost_for(config, element->owners, STAGE_TX_TOTAL);
	element->start_ns = packet->start_ns;
	element->queue_ns = packet->queue_ns;
	element->last_queue_ns = packet->last_queue_ns;
	element->xmit_ns = now;
	element->owners = (device & DEVICE_FATES) == DEVICE_COMPLETES ? measured_owners(packet) : 0;
	element->device = device;
	element->device_index = device_index;
	element->stack_ns = packet->stack_ns;
#if TRACE
	element->user = packet->user;
	element->endpoints = packet->endpoints;
#endif
	element->tag = driving_tag(identity, element);
}

static __always_inline void end_without_driver(struct config *config, struct sent *packet, u64 now)
{
	struct trace_event *event = begin_event(EVENT_SENT);
	owners_t owners = measured_owners(packet);
	struct exit_times times = {
		.start_ns = packet->start_ns,
		.queue_ns = packet->queue_ns,
		.last_queue_ns = packet->last_queue_ns,
		.xmit_ns = now,
		.stack_ns = packet->stack_ns,
	};

	record_in_all(config, owners, event, &times);
#if TRACE
	report_packet(event, owners, &packet->user, &packet->endpoints);
#endif
}

/*
 * Without net_dev_queue: true if on_queue_egress() has the time when the packet came to this device.
 * It is only on devices that have a queue. On others packets do not wait.
 */
static __always_inline bool is_queued_on_host(struct net_device *dev, struct sent *packet)
{
#ifdef WITH_ON_POD_EGRESS
	/* the first members of struct Qdisc, include/net/sch_generic.h */
	struct {
		u64 enqueue;
		u64 dequeue;
		u32 flags;
		u32 limit;
	} root = {};

	bpf_probe_read_kernel(&root, sizeof(root), READ(dev, qdisc));
	return packet->last_queue_ns && (root.enqueue || root.flags & TCQ_F_MQROOT);
#else
	return true;
#endif
}

/* xmit_one(), net/core/dev.c */
int on_net_dev_start_xmit(u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct net_device *dev = (struct net_device *)ctx[1];
	struct config *config = get_config();
	struct sent *packet;
	u64 identity, now, device;
	u32 inum, device_index, fate;
	bool sees_completions;

	if (!config)
		return 0;
	sees_completions = config->sees_completions;
	identity = sent_identity(skb, config);
	packet = get_sent(identity);
	if (!packet || !is_sent(packet, identity))
		return 0;
	inum = netns_of(dev);
	if (is_foreign(packet, (u64)READ(skb, sk), inum)) {
		abandon(config, packet);
		return 0;
	}
	device = recall_device(config, dev, inum, &device_index);
	fate = device & DEVICE_FATES;
	if (fate == DEVICE_PASSES_ON)
		return 0;
	now = bpf_ktime_get_ns();
	if (config->sees_departures && inum == HOST_NETNS && !is_queued_on_host(dev, packet)) {
		struct departure departure = departure_of(config, skb, inum);

		if (!is_forwarded(packet, &departure)) {
			abandon(config, packet);
			return 0;
		}
		packet->last_queue_ns = now;
	}
	packet->tag = 0;
	if (fate != DEVICE_IS_LAST) {
		if (!config->is_driver_used)
			config->is_driver_used = 1;
		if (sees_completions)
			give_to_driver(config, packet, identity, device, device_index, now);
	}
	if (fate != DEVICE_COMPLETES || !sees_completions)
		end_without_driver(config, packet, now);
	return 0;
}

/* Take the packet of this skb out of the table, if a driver has it. */
static __always_inline struct driving *take_from_driver(struct sk_buff *skb, struct config *config)
{
	struct driving *element;
	u64 identity;

	if (!config)
		return 0;
	identity = sent_identity(skb, config);
	element = get_driving(identity);
	if (!element || !element->tag || element->tag != driving_tag(identity, element))
		return 0;
	element->tag = 0;
	return element;
}

static __always_inline void pass_trial(struct driving *element)
{
	u32 index = element->device_index;
	u64 *device = devices.lookup(&index);

	if (device && *device == element->device)
		*device |= DEVICE_COMPLETES;
}

static __always_inline void end_with_driver(struct config *config, struct driving *element)
{
	struct trace_event *event = begin_event(EVENT_COMPLETED);
	struct exit_times times = {
		.start_ns = element->start_ns,
		.queue_ns = element->queue_ns,
		.last_queue_ns = element->last_queue_ns,
		.xmit_ns = element->xmit_ns,
		.end_ns = bpf_ktime_get_ns(),
		.stack_ns = element->stack_ns,
	};

	record_in_all(config, element->owners, event, &times);
#if TRACE
	report_packet(event, element->owners, &element->user, &element->endpoints);
#endif
}

/*
 * napi_consume_skb() leaves an skb to the CPU that allocated it: skb_attempt_defer_free(), commit
 * e20dfbad8aab, 6.19. A free by a driver on that CPU is not distinguished from it.
 */
static __always_inline void note_deferred_free(struct config *config, struct sk_buff *skb)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
	if (READ(skb, alloc_cpu) == bpf_get_smp_processor_id())
		note_obstacle(config, OBSTACLE_DEFERRED_FREE);
#endif
}

/* consume_skb(), napi_consume_skb(), net/core/skbuff.c; net_tx_action() for dev_consume_skb_irq() */
int on_consume_sent(u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct config *config = get_config();
	struct driving *element = take_from_driver(skb, config);

	if (!element)
		return 0;
	note_deferred_free(config, skb);
	if (element->owners)
		end_with_driver(config, element);
	else
		pass_trial(element);
	return 0;
}

/* kfree_skb_reason(), net/core/skbuff.c: packets that the driver did not send */
int on_drop_sent(u64 *ctx)
{
	struct config *config = get_config();
	struct driving *element = take_from_driver((struct sk_buff *)ctx[0], config);

	if (element)
		unmatched_for(config, element->owners, STAGE_TX_TOTAL, 1);
	return 0;
}
