/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module rx, its beginning by programs on devices (tcx, 6.6+) instead of the tracepoint
 * netif_receive_skb: then no program runs for a packet between strangers. They note the same in
 * `received`.
 *
 * They are attached to: the devices of the targets' namespaces; the host's ends of these; and the
 * devices by which packets come to the host from elsewhere. All of them let each packet pass, and
 * leave it as it is.
 */

/*
 * The host's devices, by their ifindex, on which on_host_ingress() is: what came by them is known,
 * or lost. Written by the agent.
 */
BPF_HASH(host_devices, u32, u8, MAX_HOST_DEVICES);

#ifdef WITH_ON_POD_INGRESS

#define TSTAMP_DELIVERY_MONO 1 /* BPF_SKB_TSTAMP_DELIVERY_MONO, include/uapi/linux/bpf.h */

/*
 * The program's argument is the skb, tcx_run(), net/core/dev.c: its type is hidden from the verifier,
 * so fields are read by PEEK().
 */
static __always_inline struct sk_buff *skb_of(struct __sk_buff *ctx)
{
	return (struct sk_buff *)ctx;
}

/* What is noted of a packet, and where. `packet`: NULL if the programs on devices do not see it. */
struct seen {
	struct config *config;
	struct cpu_context *cpu;
	struct received *packet;
	u64 identity;
};

static __always_inline struct seen see(struct sk_buff *skb)
{
	struct seen seen = { .config = get_config(), .cpu = get_cpu_context() };

	if (!seen.config || !seen.cpu || !seen.config->sees_arrivals)
		return seen;
	seen.identity = identity_of(skb, seen.config);
	seen.packet = place_received(seen.identity);
	return seen;
}

/* sch_handle_ingress() and sch_handle_egress(): the network header is where the skb says. */
static __always_inline struct arrival arrival_of(struct seen *seen, struct sk_buff *skb,
						 struct header_place *place)
{
	struct arrival arrival = {
		.identity = seen->identity,
		.head = (u64)PEEK(skb, head),
		.sk = (u64)PEEK(skb, sk),
	};

	*place = place_in_stack(skb);
	arrival.content = content_of(place);
	arrival.network = (u64)place->header - arrival.head;
	arrival.now = bpf_ktime_get_ns();
	return arrival;
}

/* As irq_ns_of(). */
static __always_inline u32 irq_ns_at(struct cpu_context *cpu, struct net_device *dev)
{
	if (!cpu->irq_ns || PEEK(dev, rtnl_link_ops) || PEEK(dev, flags) & IFF_LOOPBACK)
		return 0;
	return cpu->irq_ns;
}

/*
 * As note_steering(). Each field is a call here, so only one packet in 64 pays for them, by the time of
 * its arrival.
 */
#define STEERING_CHECKS 0x3f00

static __always_inline void note_steering_at(struct config *config, struct arrival *arrival,
					     struct net_device *dev)
{
	if (!(arrival->now & STEERING_CHECKS) && !config->obstacles[OBSTACLE_STEERING])
		NOTE_STEERING(PEEK, config, dev);
}

static __always_inline bool is_sent_by_host(u64 sk)
{
	return sk && netns_of_number(sk) == HOST_NETNS;
}

/*
 * When TCP sent a segment of this node, __tcp_transmit_skb(), net/ipv4/tcp_output.c: the skb keeps
 * that time until it is delivered, skb_clear_tstamp(), include/linux/skbuff.h. 0: it came from
 * elsewhere. The time may lie ahead: it is an earliest departure.
 */
static __always_inline u64 local_departure(struct sk_buff *skb, struct arrival *arrival,
					   u32 tstamp_type)
{
	u64 stamp;

	if (!(arrival->content & CONTENT_IS_SEGMENT) || tstamp_type != TSTAMP_DELIVERY_MONO)
		return 0;
	stamp = PEEK(skb, tstamp);
	if (stamp > arrival->now)
		return arrival->now;
	return arrival->now - stamp < TOO_LONG_NS ? stamp : 0;
}

static __always_inline bool unwraps(struct seen *seen, struct net_device *dev)
{
	u64 operations = (u64)PEEK(dev, rtnl_link_ops);

	return operations &&
	       is_from_tunnel(seen->config, seen->cpu,
			      operations - number_of_config(seen->cpu, seen->config), dev);
}

/* A packet comes to the host: from another node, or from a target. */
int on_host_ingress(struct __sk_buff *ctx)
{
	struct sk_buff *skb = skb_of(ctx);
	struct seen seen = see(skb);
	struct header_place place;
	struct net_device *dev;
	struct arrival arrival;
	enum passage passage;

	if (!seen.packet)
		return TCX_NEXT;
	dev = PEEK(skb, dev);
	arrival = arrival_of(&seen, skb, &place);
	passage = passage_on_host(seen.packet, &arrival, unwraps(&seen, dev), place.linear);
	if (passage != THROUGH_HOST) {
		note_steering_at(seen.config, &arrival, dev);
		begin_received(seen.config, seen.cpu, seen.packet, &arrival, passage,
			       irq_ns_at(seen.cpu, dev));
	}
	note_received(seen.cpu, seen.packet, &arrival, HOST_NETNS);
	return TCX_NEXT;
}

/*
 * A packet leaves the host for a target. What is not known was sent on this node, by a pod that is
 * no target. TCP's segments carry the time when they were sent. Of datagrams, the path begins here.
 */
int on_host_egress(struct __sk_buff *ctx)
{
	struct sk_buff *skb = skb_of(ctx);
	u32 came_by = PEEK(skb, skb_iif);
	struct seen seen = see(skb);
	struct header_place place;
	struct arrival arrival;

	if (!seen.packet || host_devices.lookup(&came_by))
		return TCX_NEXT;
	arrival = arrival_of(&seen, skb, &place);
	if (arrival.content & CONTENT_IS_SEGMENT || is_for_many(skb) || is_sent_by_host(arrival.sk))
		return TCX_NEXT;
	begin_received(seen.config, seen.cpu, seen.packet, &arrival, BESIDE_HOST, 0);
	seen.packet->softirq_ns = ABSENT;
	note_received(seen.cpu, seen.packet, &arrival, HOST_NETNS);
	return TCX_NEXT;
}

/* As passage_of(), with the departure of a segment that a pod of this node sent. */
static __always_inline enum passage passage_into_pod(struct seen *seen, struct arrival *arrival,
						     struct sk_buff *skb, struct net_device *dev)
{
	u64 device;

	if (!PEEK(dev, rtnl_link_ops) || is_sent_by_host(arrival->sk))
		return BESIDE_HOST;
	device = (u64)dev - number_of_config(seen->cpu, seen->config);
	return find_passage(
		seen->config, seen->packet, arrival, skb, dev,
		begins_in_host(seen->config, seen->cpu, device, PEEK(dev, ifindex), dev));
}

/* A packet comes to a target's namespace. */
int on_pod_ingress(struct __sk_buff *ctx)
{
	u32 tstamp_type = ctx->tstamp_type; /* here, since it takes the argument as it came */
	struct sk_buff *skb = skb_of(ctx);
	struct seen seen = see(skb);
	struct header_place place;
	struct net_device *dev;
	struct arrival arrival;
	enum passage passage;
	u64 departed_ns = 0;

	if (!seen.packet)
		return TCX_NEXT;
	dev = PEEK(skb, dev);
	arrival = arrival_of(&seen, skb, &place);
	passage = passage_into_pod(&seen, &arrival, skb, dev);
	if (passage != THROUGH_HOST) {
		note_steering_at(seen.config, &arrival, dev);
		begin_received(seen.config, seen.cpu, seen.packet, &arrival, passage,
			       irq_ns_at(seen.cpu, dev));
	}
	if (passage == LOST_IN_HOST)
		departed_ns = local_departure(skb, &arrival, tstamp_type);
	if (departed_ns) {
		if (seen.packet->first_ns)
			seen.packet->first_ns = departed_ns;
		seen.packet->softirq_ns = ABSENT;
		seen.packet->irq_ns = 0;
		seen.packet->is_lost = 0;
	}
	note_datagram(seen.packet, &place);
	note_received(seen.cpu, seen.packet, &arrival, 0);
	count_reception(seen.cpu);
	return TCX_NEXT;
}

#endif
