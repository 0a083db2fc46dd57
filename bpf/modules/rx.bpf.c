/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Module rx: one packet from the interrupt to the application.
 *
 *   irq_handler_entry --irq--> softirq_entry --softirq--> netif_receive_skb
 *     --host--> netif_receive_skb in the pod --stack--> tcp_probe
 *     --socket--> tcp_rcv_space_adjust
 *
 * From netif_receive_skb to the socket a packet is identified by the address of its skb, in
 * `received`. From there on TCP's segments are identified by their sequence numbers, in the
 * socket's state, since the queue merges and splits skbs. All stages of a packet are recorded
 * together when the application gets it, so that they add up.
 */

#ifndef MODULE_SCHED
static __always_inline void note_last_reader(struct segment *segment, u32 tid)
{
}

static __always_inline void note_reader(u32 tid)
{
}

static __always_inline u64 reader_waited(volatile struct segment *segment, u64 wait_ns)
{
	return 0;
}
#endif

/*
 * The agent makes it larger on nodes with many CPUs, of 2**RECEIVED_BITS elements: received_bits(),
 * kernel/load/cpus.py. By the skb's address, which leads to two elements, each a cache line. The older one is replaced: a list
 * of NAPI's has up to 64 packets, of which some have one place. `tag` is the address mixed with the
 * times, so neither another skb nor a torn element passes as ours. Addresses are reused: an element is
 * a packet's only if it has the same content, too.
 */
struct received {
	u64 tag;
	u64 first_ns;	/* first netif_receive_skb; 0: not sampled */
	u64 device_ns;	/* netif_receive_skb where the socket lives */
	u64 sk;		/* the sender's socket if it is on this node: skb->sk survives a veth */
	u64 content;	/* content_of() */
	u64 head;	/* skb->head, as a number: the buffer, which clones share */
	u32 softirq_ns; /* wait before first_ns; ABSENT outside of NET_RX */
	u32 netns;	/* of the last netif_receive_skb */
	u32 irq_ns;	/* from the NIC's interrupt to the softirq; 0: none */
	u16 is_lost;	/* it came through the host, but its time there is not known */
	u16 network;	/* where its network header is, from skb->head */
#if TRACE
	struct endpoints endpoints; /* of a datagram */
#endif
};
BPF_ARRAY(received, struct received, 1 << LEAST_RECEIVED_BITS);

static __always_inline struct received *received_at(u64 identity, u32 which)
{
	u32 index = place_of(identity, RECEIVED_BITS) ^ which;

	return received.lookup(&index);
}

static __always_inline u64 received_tag(u64 identity, u64 first_ns, u64 device_ns)
{
	return identity ^ (first_ns << 1) ^ (device_ns << 7);
}

static __always_inline bool is_of(struct received *packet, u64 identity)
{
	return packet->tag == received_tag(identity, packet->first_ns, packet->device_ns);
}

/* NULL if the skb has none. */
static __always_inline struct received *get_received(u64 identity)
{
	struct received *packet = received_at(identity, 0);

	if (packet && is_of(packet, identity))
		return packet;
	packet = received_at(identity, 1);
	return packet && is_of(packet, identity) ? packet : 0;
}

/* The skb's element, or the one that it may have: of a packet that was taken, or the older one. */
static __always_inline struct received *place_received(u64 identity)
{
	struct received *first = received_at(identity, 0), *second = received_at(identity, 1);

	if (!first || !second)
		return 0;
	if (is_of(first, identity))
		return first;
	if (is_of(second, identity) || !second->tag)
		return second;
	return !first->tag || first->device_ns < second->device_ns ? first : second;
}

/* Where a packet's network header is, and how many bytes are in one piece from there. */
struct header_place {
	unsigned char *header;
	u32 linear;
	u16 protocol; /* skb->protocol */
	u16 reserved; /* instead of padding, for which LLVM may take a pointer */
};

/* The beginning of an IPv4 header without options, and what follows it; the same of IPv6. */
struct ipv4_packet {
	u8 version_length;
	u8 service;
	u16 length;
	u16 id;
	u16 fragment;
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u32 addresses[2];
	u32 transport[3];
};

struct ipv6_packet {
	u32 before[1];
	u16 length;
	u8 protocol;
	u8 hop_limit;
	u32 addresses[8];
	u32 transport[3];
};

#define CONTENT_IS_SHARED 1  /* other packets may have it, too */
#define CONTENT_IS_KNOWN 2   /* so it is never 0 */
#define CONTENT_IS_SEGMENT 4 /* the upper half is the sequence number, as on the wire */
#define CONTENT_IS_PIECE 8 /* a fragment: its socket gets another packet, and the last one's skb */
#define CONTENT_BITS 15ULL

/* Both numbers as they are on the wire. */
static __always_inline u64 segment_content(u32 seq, u32 ack_seq)
{
	return (((u64)seq << 32 | ack_seq) & ~CONTENT_BITS) | CONTENT_IS_KNOWN | CONTENT_IS_SEGMENT;
}

/* A datagram's length and up to 16 bytes of its payload, as far as they are in one piece. */
static __always_inline u64 datagram_content(unsigned char *payload, u32 linear, u32 length)
{
	u64 bytes[2] = {}, content = mix(IPPROTO_UDP, length);

	length = (length < linear ? length : linear) - 8;
	if (length >= 16)
		bpf_probe_read_kernel(bytes, 16, payload);
	else if (length >= 8)
		bpf_probe_read_kernel(bytes, 8, payload);
	else if (length >= 4)
		bpf_probe_read_kernel(bytes, 4, payload);
	return mix(mix(content, bytes[0]), bytes[1]);
}

static __always_inline u64 ipv4_content(struct header_place *place)
{
	struct ipv4_packet packet;
	u64 content;
	u32 id;

	if (place->linear < sizeof(packet))
		return 0;
	bpf_probe_read_kernel(&packet, sizeof(packet), place->header);
	if (packet.version_length == 0x45 && !(packet.fragment & bpf_htons(0x3fff))) {
		if (packet.protocol == IPPROTO_TCP)
			return segment_content(packet.transport[1], packet.transport[2]);
	}
	/* of a fragment its place, too; the bit DF may change */
	id = packet.id | (u32)(packet.fragment & bpf_htons(0xbfff)) << 16;
	content = mix(packet.protocol, id);
	if (packet.version_length == 0x45 && packet.protocol == IPPROTO_UDP && !(id >> 16))
		content = mix(content, datagram_content(place->header + 28, place->linear - 20,
							bpf_ntohs(packet.transport[1])));
	return (content & ~CONTENT_BITS) | CONTENT_IS_KNOWN | (packet.id ? 0 : CONTENT_IS_SHARED) |
	       (packet.fragment & bpf_htons(0x3fff) ? CONTENT_IS_PIECE : 0);
}

static __always_inline u64 ipv6_content(struct header_place *place)
{
	struct ipv6_packet packet;
	u64 content;

	if (place->linear < sizeof(packet))
		return 0;
	bpf_probe_read_kernel(&packet, sizeof(packet), place->header);
	if (packet.protocol == IPPROTO_TCP)
		return segment_content(packet.transport[1], packet.transport[2]);
	content = mix(packet.protocol, packet.length);
	if (packet.protocol == IPPROTO_UDP)
		content = mix(content, datagram_content(place->header + 48, place->linear - 40,
							bpf_ntohs(packet.transport[1])));
	return (content & ~CONTENT_BITS) | CONTENT_IS_KNOWN | CONTENT_IS_SHARED |
	       (packet.protocol == IPPROTO_FRAGMENT ? CONTENT_IS_PIECE : 0);
}

/*
 * Of a packet, what stays on its path: of TCP the sequence numbers, of others the IP id, and of a
 * datagram its length and the beginning of its payload, too. Address translation changes addresses, ports and
 * checksums, forwarding the TTL; GRO and a socket's backlog append to a segment. Datagrams with
 * equal payloads are equal where they have no IP id: IPv6, and sockets that are not connected,
 * ip_select_ident_segs(), include/net/ip.h. 0: the headers are in several pieces.
 */
static __always_inline u64 content_of(struct header_place *place)
{
	if (place->protocol == bpf_htons(ETH_P_8021Q)) { /* not yet removed, skb_vlan_untag() */
		bpf_probe_read_kernel(&place->protocol, sizeof(place->protocol), place->header + 2);
		place->header += 4;
		place->linear -= 4;
	}
	if (place->protocol == bpf_htons(ETH_P_IP))
		return ipv4_content(place);
	if (place->protocol == bpf_htons(ETH_P_IPV6))
		return ipv6_content(place);
	return (u64)place->protocol << 32 | CONTENT_IS_KNOWN | CONTENT_IS_SHARED;
}

/*
 * From __netif_receive_skb_core() on, where skb->data moves from header to header. To be called with
 * an skb of any type.
 */
static __always_inline struct header_place place_in_stack(struct sk_buff *skb)
{
	u16 network_header = PEEK(skb, network_header);
	struct header_place place = {
		.header = PEEK(skb, head) + network_header,
		.linear = (u32)PEEK(skb, tail) - network_header,
		.protocol = PEEK(skb, protocol),
	};

	return place;
}

/*
 * True if the element is of this skb, and the skb still the packet that it was. One whose headers
 * were in pieces when it was received is known by its address alone.
 */
static __always_inline bool is_received(struct received *packet, struct sk_buff *skb)
{
	struct header_place place;

	if (!packet->content)
		return true;
	place = place_in_stack(skb);
	return packet->content == content_of(&place);
}

/* The same of a segment; its ACK may be of a later one, which the backlog added to it. */
static __always_inline bool is_received_segment(struct received *packet, u32 seq)
{
	return !(packet->content & CONTENT_IS_SEGMENT) || packet->content >> 32 == bpf_htonl(seq);
}

/* Its socket gets the whole packet, which is not known by any of its pieces. */
static __always_inline bool is_piece(struct received *packet)
{
	return packet->content & CONTENT_IS_PIECE;
}

/* PACKET_BROADCAST or PACKET_MULTICAST: a bridge copies it for each port, and keeps the original. */
static __always_inline bool is_for_many(struct sk_buff *skb)
{
	u8 bits = 0;

	bpf_probe_read_kernel(&bits, sizeof(bits), skb->__pkt_type_offset);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	bits >>= 5;
#endif
	return (bits & 7) == 1 || (bits & 7) == 2;
}

static __always_inline bool is_unique(u64 content)
{
	return content && !(content & CONTENT_IS_SHARED);
}

/*
 * How long a packet may be within the host. If its content is not its own, an equal
 * packet may have had the skb before, on a path that copies (XDP on a veth): unless the buffer is
 * the same, too, only as long as a hand-over without a queue takes.
 */
#define HANDOVER_NS 10000000

static __always_inline bool is_same_packet(struct received *packet, u64 content, u64 head, u64 now)
{
	u64 age = now - packet->device_ns;

	if (packet->content == content && (is_unique(content) || packet->head == head))
		return age < TOO_LONG_NS;
	return age < HANDOVER_NS &&
	       (packet->content ? packet->content == content : packet->head == head);
}

/*
 * Whether the other end of this device is in the host's namespace; remembered for the last device.
 * `identity`: of the device, see identity_of(), with its number.
 */
static __always_inline bool begins_in_host(struct config *config, struct cpu_context *cpu,
					   u64 identity, u64 ifindex, struct net_device *dev)
{
	u64 device = identity ^ ifindex << 48 ^ (u64)config->generation << 32;

	if (cpu->device != device) {
		u32 kind = kind_of(dev);

		cpu->device = device;
		cpu->leads_to_host = is_pair(kind) && leads_to_host(dev);
		if (is_pair(kind) && !cpu->leads_to_host)
			note_obstacle(config, OBSTACLE_OTHER_NETNS);
		if (kind == KIND('t', 'u', 'n', 0))
			note_obstacle(config, OBSTACLE_TUN);
	}
	return cpu->leads_to_host;
}

#define NATIVE_XDP 1 /* XDP_MODE_DRV, include/linux/netdevice.h */

/* A program on the driver of a pair gets copies: veth_xdp_rcv_skb(), drivers/net/veth.c. */
static __always_inline bool has_xdp(struct net_device *dev)
{
#ifdef HAVE_net_device_xdp_state
	struct bpf_xdp_entity entity = {};

	bpf_probe_read_kernel(&entity, sizeof(entity), &dev->xdp_state[NATIVE_XDP]);
	return entity.prog || entity.link;
#else
	return false;
#endif
}

enum passage {
	BESIDE_HOST,  /* the packet did not come through the host */
	THROUGH_HOST, /* it did, and the element has its time there */
	LOST_IN_HOST, /* it did, and that is all that is known */
};

/*
 * A packet that arrives where targets live. `sk`: the sender's socket, as a number; `network`: where
 * the network header is, from `head`.
 */
struct arrival {
	u64 identity;
	u64 content;
	u64 head;
	u64 now;
	u64 sk;
	u32 network;
};

/*
 * The passage of a packet that is not from a process of the host, by a device with rtnl_link_ops.
 * Behind a device that does not lead to the host (a router's namespace between, tun) only a content
 * of its own shows that a packet came through it.
 */
static __always_inline enum passage find_passage(struct config *config, struct received *packet,
						 struct arrival *arrival, struct sk_buff *skb,
						 struct net_device *dev, bool from_host)
{
	if (!is_unique(arrival->content) && (!from_host || is_for_many(skb)))
		return BESIDE_HOST;
	if (packet->netns == HOST_NETNS && is_of(packet, arrival->identity) &&
	    (!arrival->sk || arrival->sk == packet->sk) &&
	    is_same_packet(packet, arrival->content, arrival->head, arrival->now))
		return THROUGH_HOST;
	if (!from_host || is_for_many(skb))
		return BESIDE_HOST;
	if (has_xdp(dev))
		note_obstacle_in(config, netns_at(dev), OBSTACLE_XDP, 0);
	return LOST_IN_HOST;
}

/*
 * What was bridged or routed here came through the host. What a process of the host sent did not,
 * and its skb still has that process's socket. Neither did packets of the loopback device, nor of
 * hardware inside the pod: both are without rtnl_link_ops.
 */
static __always_inline enum passage passage_of(struct config *config, struct cpu_context *cpu,
					       struct received *packet, struct arrival *arrival,
					       struct sk_buff *skb)
{
	struct sock *sk = READ(skb, sk);
	struct net_device *dev = READ(skb, dev);

	if (!READ(dev, rtnl_link_ops))
		return BESIDE_HOST;
	if (sk && netns_of_socket(sk) == HOST_NETNS)
		return BESIDE_HOST;
	return find_passage(
		config, packet, arrival, skb, dev,
		begins_in_host(config, cpu, identity_of(dev, config), READ(dev, ifindex), dev));
}

/* The most that a tunnel puts between two network headers, the outer one included. */
#define FARTHEST_OUTER 160

/*
 * Whether a tunnel's device has unwrapped the packet of this element. It is the same skb, and the
 * outer header is still in its buffer, ahead of the inner one.
 */
static __always_inline bool is_unwrapped(struct received *packet, struct arrival *arrival,
					 u32 linear)
{
	u32 ahead = arrival->network - packet->network;
	struct header_place outer = {
		.header = (unsigned char *)arrival->head + packet->network,
		.linear = linear + ahead,
	};
	u8 version = 0;

	if (packet->netns != HOST_NETNS || !is_of(packet, arrival->identity) || !packet->content ||
	    ahead < sizeof(struct ipv4_packet) - 12 || ahead > FARTHEST_OUTER)
		return false;
	bpf_probe_read_kernel(&version, sizeof(version), outer.header);
	outer.protocol = version >> 4 == 6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	return packet->content == content_of(&outer) &&
	       arrival->now - packet->device_ns < TOO_LONG_NS;
}

/*
 * Devices of one kind share their rtnl_link_ops, whose identity this is; remembered for the last kind:
 * to read its name takes 60 ns.
 */
static __always_inline bool is_from_tunnel(struct config *config, struct cpu_context *cpu,
					   u64 identity, struct net_device *dev)
{
	u64 operations = identity ^ (u64)config->generation << 32;

	if (cpu->operations != operations) {
		cpu->unwraps = is_tunnel(kind_of(dev));
		cpu->operations = operations;
	}
	return cpu->unwraps;
}

/*
 * Of a packet that comes to the host: its path began where the outer packet came, if it comes out of
 * a tunnel. `linear`: how much of it is in one piece.
 */
static __always_inline enum passage passage_on_host(struct received *packet,
						    struct arrival *arrival, bool by_tunnel,
						    u32 linear)
{
	if (!by_tunnel)
		return BESIDE_HOST;
	return is_unwrapped(packet, arrival, linear) ? THROUGH_HOST : LOST_IN_HOST;
}

static __always_inline void note_datagram(struct received *packet, struct header_place *place)
{
#if TRACE
	read_datagram_endpoints(place->protocol, place->header, false, &packet->endpoints);
#endif
}

/*
 * The time from the hard IRQ to the NET_RX softirq that receives this packet now. It may serve
 * NICs together with virtual devices, which have no interrupt. Virtual devices have rtnl_link_ops,
 * except the loopback device.
 */
static __always_inline u32 irq_ns_of(struct cpu_context *cpu, struct sk_buff *skb)
{
	struct net_device *dev;

	if (!cpu->irq_ns)
		return 0;
	dev = READ(skb, dev);
	return READ(dev, rtnl_link_ops) || READ(dev, flags) & IFF_LOOPBACK ? 0 : cpu->irq_ns;
}

/* Few packets wait for another CPU at a time: a thousand for each CPU, net.core.netdev_max_backlog. */
#define ENTERED_BITS (RECEIVED_BITS - 1)

/* A packet as it came to its first CPU. */
struct entered {
	u64 tag; /* the skb's address mixed with the time; 0: it was taken */
	u64 entered_ns;
	u64 content;
	u64 replaced;	/* another skb that was here, and was not taken yet; 0: none */
	u32 softirq_ns; /* as in `received`; 0 outside of a softirq */
	u32 irq_ns;
};
BPF_ARRAY(entered, struct entered, 1 << (LEAST_RECEIVED_BITS - 1));

/*
 * NULL if that was not seen. With RPS a CPU leaves packets to another one, in whose backlog they wait:
 * netif_receive_skb_internal(), net/core/dev.c. There netif_receive_skb comes only afterwards. If a
 * later packet has its place, its wait is not known, and it is lost.
 */
static __always_inline struct entered *take_entered(struct config *config, struct arrival *arrival,
						    struct received *packet)
{
	u32 index = place_of(arrival->identity, ENTERED_BITS);
	struct entered *found;

	if (!config->obstacles[OBSTACLE_STEERING])
		return 0;
	found = entered.lookup(&index);
	if (!found || arrival->now - found->entered_ns >= TOO_LONG_NS)
		return 0;
	if (found->replaced == arrival->identity) {
		found->replaced = 0;
		packet->is_lost = 1;
	}
	if (found->tag != (arrival->identity ^ found->entered_ns << 1) ||
	    found->content != arrival->content)
		return 0;
	found->tag = 0;
	return found;
}

/* It is seen here first: all times begin now, or when its first CPU had it. */
static __always_inline void begin_received(struct config *config, struct cpu_context *cpu,
					   struct received *packet, struct arrival *arrival,
					   enum passage passage, u32 irq_ns)
{
	u64 entered_ns = net_rx_entry(cpu);
	struct entered *first;

	packet->is_lost = passage == LOST_IN_HOST;
	first = take_entered(config, arrival, packet);
	packet->first_ns = is_sampled(config) ? arrival->now : 0;
	packet->softirq_ns = entered_ns ? saturate(arrival->now - entered_ns) : ABSENT;
	packet->irq_ns = entered_ns ? irq_ns : 0;
	packet->sk = arrival->sk;
	if (first) {
		packet->softirq_ns = saturate(first->softirq_ns +
					      (arrival->now - first->entered_ns));
		packet->irq_ns = first->irq_ns;
	}
}

#ifdef WITH_ON_NETIF_RX_ENTRY

static __always_inline int enter(struct sk_buff *skb)
{
	struct cpu_context *cpu = get_cpu_context();
	struct config *config = get_config();
	struct header_place place;
	struct entered *entry;
	u64 identity, replaced, now, softirq_ns;
	u32 index;

	if (!config || !cpu || !find_netns(config, netns_of(READ(skb, dev))))
		return 0;
	identity = identity_of(skb, config);
	index = place_of(identity, ENTERED_BITS);
	entry = entered.lookup(&index);
	if (!entry)
		return 0;
	place.header = READ(skb, data);
	place.linear = READ(skb, len) - READ(skb, data_len);
	place.protocol = READ(skb, protocol);
	now = bpf_ktime_get_ns();
	softirq_ns = net_rx_entry(cpu);
	entry->softirq_ns = softirq_ns ? saturate(now - softirq_ns) : 0;
	entry->irq_ns = softirq_ns ? irq_ns_of(cpu, skb) : 0;
	replaced = entry->tag ? entry->tag ^ entry->entered_ns << 1 : 0;
	entry->replaced = replaced == identity ? 0 : replaced;
	entry->entered_ns = now;
	entry->content = content_of(&place);
	entry->tag = identity ^ now << 1;
	return 0;
}

/* netif_rx(), net/core/dev.c: of veth and other devices without NAPI */
int on_netif_rx_entry(u64 *ctx)
{
	return enter((struct sk_buff *)ctx[0]);
}

/* netif_receive_skb(): of drivers without GRO */
int on_netif_receive_skb_entry(u64 *ctx)
{
	return enter((struct sk_buff *)ctx[0]);
}

/* napi_gro_receive(), net/core/gro.c: of the packets that are merged the first one is kept */
int on_napi_gro_receive_entry(u64 *ctx)
{
	return enter((struct sk_buff *)ctx[0]);
}

#endif

/* Whether the device leaves packets to other CPUs: RPS or RFS, of its first queue. */
#ifdef HAVE_netdev_rx_queue_rps_map
#define NOTE_STEERING(read, config, dev)                                               \
	({                                                                             \
		struct netdev_rx_queue *_queue = read(dev, _rx);                       \
		if (_queue && (read(_queue, rps_map) || read(_queue, rps_flow_table))) \
			note_obstacle(config, OBSTACLE_STEERING);                      \
	})
#else
#define NOTE_STEERING(read, config, dev)
#endif

static __always_inline void note_steering(struct config *config, struct net_device *dev)
{
	if (!config->obstacles[OBSTACLE_STEERING])
		NOTE_STEERING(READ, config, dev);
}

static __always_inline void note_received(struct cpu_context *cpu, struct received *packet,
					  struct arrival *arrival, u32 netns)
{
	packet->netns = netns;
	packet->network = arrival->network;
	packet->content = arrival->content;
	packet->head = arrival->head;
	packet->device_ns = arrival->now;
	packet->tag = received_tag(arrival->identity, packet->first_ns, arrival->now);
	cpu->received_id = arrival->identity;
}

/* How many packets this softirq has received where targets live, less those that reached a socket. */
static __always_inline void count_reception(struct cpu_context *cpu)
{
	if (cpu->batch_ns != cpu->net_rx_ns) {
		cpu->batch_ns = cpu->net_rx_ns;
		cpu->undelivered = 0;
	}
	cpu->undelivered++;
}

/*
 * macvlan's handler and bpf_redirect_peer() have the packet begin again on the pod's device, behind
 * netif_receive_skb: __netif_receive_skb_core(), net/core/dev.c. If a pod of this node sent it, no device of
 * the host was given it to transmit: its end is seen by no hook of the module tx.
 */
static __always_inline void note_entry(struct config *config, struct received *packet,
				       struct sock *sk)
{
	if (packet->netns == HOST_NETNS && netns_of_socket(sk) != HOST_NETNS) {
		note_obstacle(config, OBSTACLE_NO_ARRIVAL);
		if (packet->sk)
			note_obstacle_in(config, netns_of_number(packet->sk), OBSTACLE_NO_DEPARTURE,
					 0);
	}
}

/* passage_on_host(), by a device whose type the verifier knows. */
static __always_inline enum passage passage_by_device(struct config *config,
						      struct cpu_context *cpu,
						      struct received *packet,
						      struct arrival *arrival,
						      struct net_device *dev, u32 linear)
{
	struct rtnl_link_ops *operations = READ(dev, rtnl_link_ops);
	bool by_tunnel = operations &&
			 is_from_tunnel(config, cpu, identity_of(operations, config), dev);

	return passage_on_host(packet, arrival, by_tunnel, linear);
}

/* __netif_receive_skb_core(), net/core/dev.c */
int on_netif_receive_skb(u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	u32 inum = netns_of(READ(skb, dev));
	struct config *config = get_config();
	enum passage passage = BESIDE_HOST;
	struct header_place place;
	struct netns_entry *netns;
	struct cpu_context *cpu;
	struct received *packet;
	struct arrival arrival;

	if (!config || config->sees_arrivals)
		return 0;
	netns = find_netns(config, inum);
	if (!netns)
		return 0;
	/*
	 * Set by the first pass and cleared on entry into another namespace, skb_scrub_packet(): if
	 * it is set, the packet came through a bridge or VLAN device of the same namespace.
	 */
	if (READ(skb, skb_iif))
		return 0;
	arrival.identity = identity_of(skb, config);
	packet = place_received(arrival.identity);
	cpu = get_cpu_context();
	if (!packet || !cpu)
		return 0;
	arrival.now = bpf_ktime_get_ns();
	arrival.head = (u64)READ(skb, head);
	arrival.sk = (u64)READ(skb, sk);
	/* the network header, which is noted in the skb only later */
	place.header = READ(skb, data);
	place.linear = READ(skb, len) - READ(skb, data_len);
	place.protocol = READ(skb, protocol);
	arrival.content = content_of(&place);
	arrival.network = (u64)place.header - arrival.head;
	if (inum != HOST_NETNS)
		passage = passage_of(config, cpu, packet, &arrival, skb);
	else
		passage = passage_by_device(config, cpu, packet, &arrival, READ(skb, dev),
					    place.linear);
	if (passage != THROUGH_HOST) {
		note_steering(config, READ(skb, dev));
		begin_received(config, cpu, packet, &arrival, passage, irq_ns_of(cpu, skb));
	}
	note_datagram(packet, &place);
	note_received(cpu, packet, &arrival, inum);
	if (inum != HOST_NETNS || netns->flags & NETNS_WATCHED)
		count_reception(cpu);
	return 0;
}

/* The stages before the socket, from the times that earlier hooks noted. */
static __always_inline void fill_segment(struct segment *segment, struct received *packet,
					 u64 stack_ns, bool has_stack)
{
	u64 host_ns = packet->device_ns - packet->first_ns;
	u64 before_ns = host_ns + packet->irq_ns;

	segment->irq_ns = packet->irq_ns;
	segment->softirq_ns = packet->softirq_ns;
	if (packet->softirq_ns != ABSENT)
		before_ns += packet->softirq_ns;
	segment->host_ns = host_ns ? saturate(host_ns) : ABSENT;
	segment->stack_ns = has_stack ? saturate(stack_ns) : ABSENT;
	if (has_stack)
		before_ns += stack_ns;
	segment->before_ns = saturate(before_ns);
#if TRACE
	segment->endpoints = packet->endpoints;
#endif
}

/* A packet without its time on the host has no total, and so no stage at all. */
static __always_inline void lose_in_host(struct config *config, struct socket_state *state)
{
	lost_for(config, state->owners, STAGE_RX_HOST);
	lost_for(config, state->owners, STAGE_RX_TOTAL);
}

/* A packet of a socket without room for its state. */
static __always_inline void lose_received(struct config *config, owners_t owners)
{
	if (owners && is_sampled(config))
		lost_for(config, owners, STAGE_RX_SOCKET);
}

/*
 * The bytes from `unread` to `known_seq` are accounted for. Bytes that did not come by
 * tcp_rcv_established() are not: with the handshake's last ACK, after our own FIN, or before we
 * watched.
 */
static __always_inline void account_for(struct config *config, struct socket_state *state,
					u32 unread, u32 expected, u32 end)
{
	if (!state->is_seq_known) {
		state->is_seq_known = 1;
		state->known_seq = unread;
	}
	if (is_after(expected, state->known_seq)) {
		state->known_seq = expected;
		if (sees_all(config))
			unmatched_for(config, state->owners, STAGE_RX_SOCKET, 1);
	}
	if (is_after(end, state->known_seq))
		state->known_seq = end;
}

/*
 * Drop segments that TCP's own numbers contradict: a first segment whose reading was not seen
 * (sockmap), a last one that TCP dropped after tcp_probe and that now comes again.
 */
static __always_inline void correct_queue(struct config *config, struct socket_state *state,
					  struct socket_queue *queue, struct segment_ring *ring,
					  u32 unread, u32 expected)
{
	if (queue->head == queue->tail)
		return;
	if (is_after(segment_at(queue, ring, queue->tail - 1)->end_seq, expected)) {
		queue->tail--;
		return;
	}
	if (is_after(segment_at(queue, ring, queue->head)->end_seq, unread))
		return;
	queue->head++;
	unmatched_for(config, state->owners, STAGE_RX_SOCKET, 1);
}

/*
 * Where the next segment will be; NULL if memory is short. Of a queue that is full, in its own ring:
 * with a larger one if it had none.
 */
static __always_inline struct segment *next_segment(struct sock *sk, struct socket_state *state,
						    struct socket_queue *queue,
						    struct segment_ring *ring)
{
	u32 waiting;

	if (!queue)
		return 0;
	waiting = queue->tail - queue->head;
	if (waiting >= FEW_SEGMENTS && !ring)
		ring = widen_segments(sk, state, queue);
	if (waiting >= (ring ? SEGMENTS : FEW_SEGMENTS))
		return 0;
	return segment_at(queue, ring, queue->tail);
}

/* `queue`: NULL if memory is short. `seq`: from there on its data is new. */
static __always_inline void queue_segment(struct config *config, struct sock *sk,
					  struct socket_state *state, struct socket_queue *queue,
					  struct segment_ring *ring, struct incoming *incoming,
					  u32 seq, u64 now)
{
	struct received *packet = get_received(incoming->identity);
	struct segment *segment;

	if (!packet || is_piece(packet) || !is_received_segment(packet, incoming->seq)) {
		if (packet && is_piece(packet))
			count_for(config, state->owners, COUNTER_FRAGMENTED_PACKETS);
		miss_in_slice(config, state->owners, STAGE_RX_STACK);
		return;
	}
	packet->tag = 0;
	note_entry(config, packet, sk);
	if (!packet->first_ns)
		return;
	if (packet->is_lost) {
		lose_in_host(config, state);
		return;
	}
	segment = next_segment(sk, state, queue, ring);
	if (!segment || !queue) {
		lost_for(config, state->owners, STAGE_RX_SOCKET);
		return;
	}
	segment->queued_ns = now;
	segment->seq = seq;
	segment->end_seq = incoming->end_seq;
	fill_segment(segment, packet, now - packet->device_ns, true);
	note_last_reader(segment, queue->reader);
	queue->tail++;
}

/*
 * The sequence number that is expected next. TCP's own is behind while earlier segments wait in the
 * backlog.
 */
static __always_inline u32 expected_seq(struct socket_queue *queue, struct tcp_sock *tp,
					struct incoming *incoming)
{
	u32 expected = READ(tp, rcv_nxt);

	if (incoming->is_beside && queue && queue->is_arrived_known &&
	    is_after(queue->arrived_seq, expected))
		return queue->arrived_seq;
	return expected;
}

static __always_inline void receive_segment(struct config *config, struct sock *sk,
					    struct socket_state *state, struct tcp_sock *tp,
					    struct incoming *incoming, u64 now)
{
	struct segment_ring *ring = 0;
	struct socket_queue *queue;
	u32 expected;

	if (incoming->seq == incoming->end_seq)
		return;
	queue = get_queue(sk, state);
	expected = expected_seq(queue, tp, incoming);
	if (!is_after(incoming->end_seq, expected))
		return; /* data that was received before */
	if (IS_OF_MPTCP(READ, tp))
		count_for(config, state->owners, COUNTER_MPTCP_SEGMENTS);
	account_for(config, state, READ(tp, copied_seq), expected, incoming->end_seq);
	if (is_after(incoming->seq, expected)) {
		count_for(config, state->owners, COUNTER_HEAD_OF_LINE_SEGMENTS);
		return;
	}
	if (queue) {
		queue->arrived_seq = incoming->end_seq;
		queue->is_arrived_known = 1;
		ring = find_segment_ring(config, sk, state, queue);
		if (!incoming->is_beside)
			correct_queue(config, state, queue, ring, READ(tp, copied_seq), expected);
	}
	queue_segment(config, sk, state, queue, ring, incoming, expected, now);
}

/*
 * The last ACK of a handshake may have data: a listener with TCP_DEFER_ACCEPT lets no other in. It
 * reaches the new socket past tcp_probe, tcp_child_process(), net/ipv4/tcp_minisocks.c. It is the
 * packet that this CPU received last: or TCP's numbers differ, in a list of NAPI's.
 */
static __always_inline void receive_with_handshake(struct config *config, struct sock *sk,
						   struct socket_state *state, struct tcp_sock *tp,
						   u64 now)
{
	struct cpu_context *cpu = get_cpu_context();
	u32 expected = READ(tp, rcv_nxt), acknowledged = READ(tp, snd_una);
	struct received *packet;
	struct incoming incoming = {};
	struct tcp_skb_cb *cb;

	if (!cpu)
		return;
	incoming.identity = cpu->received_id;
	packet = get_received(incoming.identity);
	if (!packet ||
	    packet->content != segment_content(bpf_htonl(expected), bpf_htonl(acknowledged)))
		return;
	cb = (struct tcp_skb_cb *)(incoming.identity + number_of_config(cpu, config) +
				   offsetof(struct sk_buff, cb));
	incoming.seq = PEEK(cb, seq);
	incoming.end_seq = PEEK(cb, end_seq);
	if (incoming.seq != expected)
		return;
	if (PEEK(cb, tcp_flags) & TCPHDR_FIN)
		incoming.end_seq--;
	receive_segment(config, sk, state, tp, &incoming, now);
}

/* The part of the packet's time in the socket in which its reader was runnable, but others ran. */
static __always_inline void record_wakeup(struct config *config, struct slot_stats *slot,
					  struct trace_event *event,
					  volatile struct segment *segment, u64 wait_ns)
{
	u64 ns = reader_waited(segment, wait_ns);

	if (ns)
		record_part(config, slot, event, STAGE_RX_WAKEUP, ns);
}

/* The parts of a packet for its event, all at once: the verifier follows each question for an event. */
static __always_inline void note_parts(struct trace_event *event, volatile struct segment *segment,
				       u64 wait_ns)
{
#if TRACE
	u64 irq_ns = segment->irq_ns;

	if (!event)
		return;
	event->stages[STAGE_RX_IRQ] = irq_ns + is_below_0(0 - irq_ns);
	event->stages[STAGE_RX_SOFTIRQ] = (u32)(segment->softirq_ns + 1); /* 0 of ABSENT */
	event->stages[STAGE_RX_HOST] = (u32)(segment->host_ns + 1);
	event->stages[STAGE_RX_STACK] = (u32)(segment->stack_ns + 1);
	event->stages[STAGE_RX_SOCKET] = wait_ns + 1;
	event->stages[STAGE_RX_TOTAL] = wait_ns + segment->before_ns + 1;
#endif
}

/* The stages of a packet; `wait_ns` in the socket, plausible. */
static __always_inline void record_parts(struct config *config, struct slot_stats *slot,
					 struct trace_event *event,
					 volatile struct segment *segment, u64 wait_ns)
{
	struct stage_stats *stages = slot->stages;

	note_parts(event, segment, wait_ns);
	record_checked(config, &stages[STAGE_RX_SOCKET], wait_ns);
	record_checked(config, &stages[STAGE_RX_TOTAL], wait_ns + segment->before_ns);
	if (segment->irq_ns)
		record_saturated(config, &stages[STAGE_RX_IRQ], segment->irq_ns);
	if (segment->softirq_ns != ABSENT)
		record_saturated(config, &stages[STAGE_RX_SOFTIRQ], segment->softirq_ns);
	if (segment->host_ns != ABSENT)
		record_saturated(config, &stages[STAGE_RX_HOST], segment->host_ns);
	if (segment->stack_ns != ABSENT)
		record_saturated(config, &stages[STAGE_RX_STACK], segment->stack_ns);
	record_wakeup(config, slot, event, segment, wait_ns);
}

/*
 * `segment` must be in a map: values from there are unknown to the verifier, which bounds its work.
 */
static __always_inline void record_packet(struct config *config, u32 slot_number,
					  volatile struct segment *segment, u64 now)
{
	struct slot_stats *slot = get_stats(config, slot_number);
	struct trace_event *event = begin_event(EVENT_RECEIVED);
	u64 wait_ns = now - segment->queued_ns;

	if (!slot)
		return;
	if (wait_ns > TOO_LONG_NS) /* no part without the others */
		__sync_fetch_and_add(&slot->stages[STAGE_RX_SOCKET].missing[UNMATCHED], 1);
	else
		record_parts(config, slot, event, segment, wait_ns);
}

/*
 * Report the packet that was just recorded, if it was slow. Without `sk` a datagram's ends are those
 * of its headers, or unknown. Without a `reader` this is not the reader's own context.
 */
static __always_inline void trace_received(struct sock *sk, u32 protocol, owners_t owners,
					   volatile struct segment *segment, u32 reader)
{
#if TRACE
	struct trace_event *event = get_event(EVENT_RECEIVED);

	if (!event || !is_to_be_reported(event, owners))
		return;
	if (reader)
		note_user(&event->user);
	else
		__builtin_memset(&event->user, 0, sizeof(event->user));
	if (protocol == PROTOCOL_UDP)
		event->endpoints = ((struct segment *)segment)->endpoints;
	if (sk && (protocol == PROTOCOL_TCP || !event->endpoints.family))
		read_socket_endpoints(sk, protocol, &event->endpoints);
	submit_event(event);
#endif
}

/* The segment at the beginning of the queue. NULL: its ring is gone, see find_segment_ring(). */
static __always_inline volatile struct segment *first_segment(struct sock *sk,
							      volatile struct socket_queue *queue)
{
	struct segment_ring *ring;

	if (!queue->has_segment_ring)
		return &queue->segments[queue->head & (FEW_SEGMENTS - 1)];
	ring = look_up_segment_ring(sk);
	return ring ? &ring->segments[queue->head & (SEGMENTS - 1)] : 0;
}

/*
 * Drop segments from the beginning of the queue that are no samples: those before `read_from`, which
 * were taken unseen, and those that waited too long. Neither is behind a segment that is a sample.
 * They are in `segments`, a table of `size`.
 */
static __always_inline void drop_segments(struct socket_state *state, struct socket_queue *queue,
					  struct segment *segments, u32 size, u64 now)
{
	volatile struct socket_queue *waiting = queue;
	struct segment *first;
	u64 wait_ns, is_unseen, is_old;
	u32 i;

	for (i = 0; i < size; i++) {
		if (waiting->head == waiting->tail)
			break;
		first = &segments[waiting->head & (size - 1)];
		wait_ns = now - first->queued_ns;
		is_unseen = is_below_0((s64)(s32)(first->end_seq - state->read_from) - 1);
		is_old = is_below_0(TOO_LONG_NS - wait_ns) | is_below_0(wait_ns);
		is_old &= is_below_0(-(s64)(s32)(state->read_seq - first->seq));
		if (!(is_unseen | is_old))
			break;
		waiting->skipped += is_unseen;
		waiting->outdated += is_old & ~is_unseen;
		waiting->head++;
	}
}

/*
 * The bytes from `read_from` to `read_seq` go to the application: so do the segments that begin
 * there.
 * A round records one segment in one slot: a single flat loop is what the verifier can follow. What
 * a round needs it reads from the socket's state. There it is unknown to the verifier, which would
 * follow each path to the loop, and each number of slots left, through all rounds.
 */
static __always_inline void read_segments(struct config *config, struct sock *sk,
					  struct socket_state *state, struct socket_queue *queue,
					  u64 now)
{
	volatile struct socket_state *in_map = state;
	volatile struct socket_queue *waiting = queue;
	volatile struct segment *segment = &queue->present, *first;
	struct slot_stats *slot;
	int i;

	waiting->owners_left = in_map->owners;
	note_reader(waiting->reader);
	for (i = 0; i < READ_ROUNDS; i++) {
		if (waiting->head == waiting->tail)
			break;
		first = first_segment(sk, queue);
		if (!first)
			break;
		/* a copy, wherever it is: or the verifier would follow all that comes for each place */
		copy_segment(segment, first);
		if (!is_after(in_map->read_seq, segment->seq))
			break;
		slot = get_stats(config, first_slot(waiting->owners_left));
		if (slot)
			record_parts(config, slot, begin_event(EVENT_RECEIVED), segment,
				     now - segment->queued_ns);
		waiting->owners_left >>= OWNER_BITS;
		if (waiting->owners_left)
			continue;
		waiting->owners_left = in_map->owners;
		if (slot) /* else the event is of another packet */
			trace_received(sk, PROTOCOL_TCP, in_map->owners, segment, waiting->reader);
		waiting->head++;
		waiting->taken++;
	}
}

/* A read that no segment accounts for: see account_for(). `outdated` of the segments were sampled. */
static __always_inline void check_read(struct config *config, struct socket_state *state,
				       u32 skipped, u32 outdated)
{
	u32 unmatched = outdated;

	if (!state->is_seq_known) {
		state->is_seq_known = 1;
		state->known_seq = state->read_from;
	}
	if (is_after(state->read_seq, state->known_seq)) {
		state->known_seq = state->read_seq;
		skipped++;
	}
	if (sees_all(config))
		unmatched += skipped;
	if (unmatched)
		unmatched_for(config, state->owners, STAGE_RX_SOCKET, unmatched);
}

/*
 * How long the present thread has waited for a CPU in its life: sched_info_arrive(),
 * kernel/sched/stats.h. 0: the kernel keeps no such account (CONFIG_SCHED_INFO).
 */
static __always_inline u64 own_delay(void)
{
#ifdef HAVE_sched_info_run_delay
	return READ(current_task(), sched_info.run_delay);
#else
	return 0;
#endif
}

/*
 * How long the reader has waited for a CPU since it last read here; 0: another thread did. In the map,
 * where it is unknown to the verifier.
 */
static __always_inline void begin_read(struct socket_queue *queue, u32 reader, u64 own_ns)
{
	u64 is_same = is_equal(queue->reader, reader) & is_below_0(0 - (u64)reader);

	queue->reader_delay_ns = (own_ns - queue->reader_delay_ns) & (0 - is_same);
	queue->reader = reader;
	queue->taken = 0;
}

/* That was no time of the reader's own: of each segment at most the time that it lay in the socket. */
static __always_inline void end_read(struct config *config, struct socket_state *state,
				     struct socket_queue *queue, u64 now, u64 own_ns)
{
	u64 delay_ns = queue->reader_delay_ns, wait_ns = now - queue->present.queued_ns;

	if (delay_ns > wait_ns)
		delay_ns = wait_ns;
	if (queue->taken && delay_ns)
		add_for(config, state->owners, COUNTER_READER_DELAY_NS, delay_ns * queue->taken);
	queue->reader_delay_ns = own_ns;
}

/* The application has read from a TCP socket. */
static __always_inline void take_segments(struct config *config, struct sock *sk,
					  struct socket_state *state, u64 now, bool is_own)
{
	struct socket_queue *queue = get_queue(sk, state);
	u32 skipped = 0, outdated = 0;
	struct segment_ring *ring;
	u64 own_ns;

	if (queue) {
		own_ns = own_delay();
		begin_read(queue, is_own ? bpf_get_current_pid_tgid() : 0, own_ns);
		ring = find_segment_ring(config, sk, state, queue);
		if (ring)
			drop_segments(state, queue, ring->segments, SEGMENTS, now);
		else
			drop_segments(state, queue, queue->segments, FEW_SEGMENTS, now);
		read_segments(config, sk, state, queue, now);
		end_read(config, state, queue, now, own_ns);
		skipped = queue->skipped;
		outdated = queue->outdated;
		queue->skipped = queue->outdated = 0;
	}
	check_read(config, state, skipped, outdated);
}

/*
 * Datagrams. Their queue is first in, first out, and a read takes one: so the datagram that was read
 * is the one that lies as far from the ring's end as datagrams remain in the queue. Ring and queue
 * agree again whenever the queue is empty, even if datagrams were missed before.
 *
 * Two CPUs that queue at the same time may write one place of the ring and skip the next. So a
 * reader empties the place that it has read: an empty place was never written. And only the reader
 * counts, so that no race counts a datagram twice.
 */
#define PLACE_EMPTY 0	  /* queued_ns of no datagram */
#define PLACE_UNSAMPLED 1 /* of one that does not count */
#define PLACE_UNMATCHED 2 /* of one whose path to the socket was not seen */
#define PLACE_PIECES 3	  /* of one that came in fragments */

/*
 * The datagram that was just queued: the last of the socket's queue. Several may be queued before
 * the first event, if another CPU left them to this one (6.18+): so the last one that was not yet
 * taken from the table. The CPU's last one, if a reader was faster, or if the skb was made after that
 * one, as the segments of a UDP_SEGMENT burst are, udp_queue_rcv_skb(), net/ipv4/udp.c. But only if it
 * is the only one that has not reached a socket: NAPI delivers lists, netif_receive_skb_list(), and
 * receives several before it delivers one.
 */
#define QUEUED_AT_ONCE 4

/*
 * The last of a queue's datagrams that was not yet taken from the table; NULL: none of the last few.
 * `config`: its address as a number, since `queue` may lie outside of the socket's known type.
 */
static __always_inline struct received *find_last(struct sk_buff_head *queue, u64 config)
{
	struct sk_buff *end = (struct sk_buff *)queue;
	struct sk_buff *skb = PEEK(queue, prev);
	int i;

	for (i = 0; i < QUEUED_AT_ONCE && skb && skb != end; i++) {
		struct received *packet = get_received((u64)skb - config);

		if (packet && is_received(packet, skb))
			return packet;
		skb = PEEK(skb, prev);
	}
	return 0;
}

/* It may be the last fragment of what is queued. */
static __always_inline struct received *find_queued(struct sock *sk, struct config *config)
{
	struct cpu_context *cpu = get_cpu_context();
	struct received *packet;
	u32 undelivered;
	u64 base;

	if (!cpu)
		return 0;
	undelivered = cpu->undelivered;
	if (undelivered)
		cpu->undelivered--;
	base = number_of_config(cpu, config);
	packet = find_last(&sk->sk_receive_queue, base);
	if (!packet) /* recv(), poll() and FIONREAD move all there, first_packet_length() */
		packet = find_last(&((struct udp_sock *)sk)->reader_queue, base);
	if (packet)
		return packet;
	packet = get_received(cpu->received_id);
	if (packet && is_piece(packet))
		return packet->netns == netns_of_socket(sk) ? packet : 0;
	return packet && undelivered < 2 ? packet : 0;
}

/* A datagram is in its socket's queue. */
static __always_inline void queue_datagram(struct config *config, struct sock *sk,
					   struct socket_state *state)
{
	struct received *packet = find_queued(sk, config);
	struct socket_queue *queue = get_queue(sk, state);
	u64 queued_ns = PLACE_UNMATCHED;
	struct segment_ring *ring;
	struct segment *segment;

	if (!queue) {
		lose_received(config, state->owners);
		return;
	}
	ring = find_segment_ring(config, sk, state, queue);
	if (!ring && queue->tail - queue->head >= FEW_SEGMENTS - 1)
		ring = widen_segments(sk, state, queue);
	segment = segment_at(queue, ring, queue->tail);
	if (packet && is_piece(packet)) {
		queued_ns = PLACE_PIECES;
	} else if (packet) {
		packet->tag = 0;
		note_entry(config, packet, sk);
		queued_ns = PLACE_UNSAMPLED;
		if (packet->first_ns && packet->is_lost) {
			lose_in_host(config, state);
		} else if (packet->first_ns) {
			queued_ns = bpf_ktime_get_ns();
			fill_segment(segment, packet, queued_ns - packet->device_ns, true);
			note_last_reader(segment, queue->reader);
		}
	}
	segment->queued_ns = queued_ns;
	segment->seq = queue->tail;
	segment->end_seq = 0;
	queue->tail++;
}

static __always_inline u32 remaining_datagrams(struct sock *sk)
{
	u32 in_reader_queue = 0; /* the reader takes the whole queue at once, __skb_recv_udp() */

	bpf_probe_read_kernel(&in_reader_queue, sizeof(in_reader_queue),
			      &((struct udp_sock *)sk)->reader_queue.qlen);
	return READ(sk, sk_receive_queue.qlen) + in_reader_queue;
}

static __always_inline bool note_question(struct config *config, struct socket_queue *queue,
					  owners_t owners, struct segment *segment, u64 now);

static __always_inline void read_datagram(struct config *config, struct sock *sk,
					  struct socket_state *state, u32 remaining)
{
	struct socket_queue *queue = look_up_socket_queue(sk);
	owners_t owners = state->owners;
	u64 now = bpf_ktime_get_ns();
	struct segment_ring *ring;
	struct segment *segment;
	bool is_spare = false;
	u32 position;

	if (!queue) {
		if (!state->is_queue_refused) /* it was queued before we watched */
			miss_in_slice(config, owners, STAGE_RX_SOCKET);
		return;
	}
	position = queue->tail - remaining - 1;
	if (is_after(queue->head, position)) {
		miss_in_slice(config, owners, STAGE_RX_SOCKET);
		return;
	}
	queue->head = position + 1;
	ring = find_segment_ring(config, sk, state, queue);
	/* a datagram that comes now overwrites the oldest */
	if (remaining >= (ring ? SEGMENTS : FEW_SEGMENTS) - 1) {
		lost_for(config, owners, STAGE_RX_SOCKET);
		return;
	}
	segment = segment_at(queue, ring, position);
	if (segment->seq == position)
		is_spare = note_question(config, queue, owners, segment, now);
	if (segment->queued_ns == PLACE_EMPTY || segment->seq != position) {
		miss_in_slice(config, owners, STAGE_RX_SOCKET);
	} else if (segment->queued_ns == PLACE_PIECES) {
		count_for(config, owners, COUNTER_FRAGMENTED_PACKETS);
		miss_in_slice(config, owners, STAGE_RX_STACK);
	} else if (segment->queued_ns == PLACE_UNMATCHED) {
		miss_in_slice(config, owners, STAGE_RX_STACK);
	} else if (segment->queued_ns > PLACE_PIECES && segment->queued_ns < config->slice_ns) {
		miss_in_slice(config, owners, STAGE_RX_SOCKET); /* it was read unseen */
	} else if (segment->queued_ns != PLACE_UNSAMPLED && is_spare) {
		count_for(config, owners, COUNTER_SPARE_REPLIES);
	} else if (segment->queued_ns != PLACE_UNSAMPLED) {
		queue->reader = bpf_get_current_pid_tgid();
		note_reader(queue->reader);
		for (; owners; owners >>= OWNER_BITS)
			record_packet(config, first_slot(owners), segment, now);
		trace_received(sk, PROTOCOL_UDP, state->owners, segment, queue->reader);
	}
	segment->queued_ns = PLACE_EMPTY;
}

#ifdef WITH_ON_SOCK_RECV_LENGTH

/* sock_recvmsg(), net/socket.c, 6.3+; after the copy */
int on_sock_recv_length(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct config *config = get_config();
	struct socket_state *state;
	struct turned_away away;

	if (!config || protocol_of(sk) != PROTOCOL_UDP)
		return 0;
	if ((int)ctx[1] < 0 || (u32)ctx[2] & (MSG_PEEK | MSG_ERRQUEUE))
		return 0;
	state = get_own_state(sk, config, &away);
	if (state)
		read_datagram(config, sk, state, remaining_datagrams(sk));
	else
		lose_received(config, away.users); /* the others' were counted when they came */
	return 0;
}

#endif

#ifdef WITH_ON_CONSUME_SKB

/* The reader's slots, for a datagram whose socket is no longer known. */
static __always_inline owners_t look_up_reader(struct config *config, u32 netns, u16 local,
					       u16 remote)
{
	u64 id = bpf_get_current_cgroup_id();
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct netns_entry *by_netns = find_netns(config, netns);
	owners_t *by_cgroup = cgroups.lookup(&id);
	owners_t *by_process = processes.lookup(&tgid);
	owners_t owners = 0;

	if (by_netns)
		owners = add_owners(owners, by_netns->owners, PROTOCOL_UDP, local, remote);
	if (by_cgroup)
		owners = add_owners(owners, *by_cgroup, PROTOCOL_UDP, local, remote);
	if (by_process)
		owners = add_owners(owners, *by_process, PROTOCOL_UDP, local, remote);
	return owners;
}

/* IPv4 and IPv6 without extension headers: where the header of a datagram is named. */
static __always_inline bool is_udp(struct sk_buff *skb)
{
	u32 offset = READ(skb, protocol) == bpf_htons(ETH_P_IP) ? 9 : 6;
	u8 protocol = 0;

	bpf_probe_read_kernel(&protocol, sizeof(protocol),
			      READ(skb, head) + READ(skb, network_header) + offset);
	return protocol == IPPROTO_UDP;
}

BPF_PERCPU_ARRAY(datagrams, struct segment, 1); /* room that on_consume_skb() works in */

/*
 * For kernels before 6.3, which have no sock_recv_length. A datagram is freed when recvmsg() has
 * copied it, skb_consume_udp(), net/ipv4/udp.c. Of all freed skbs, these were received where
 * targets live and are freed by a process. (A small one is copied by copy_linear_skb(), without an
 * event.)
 */
int on_consume_skb(u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct config *config = get_config();
	struct cpu_context *cpu = get_cpu_context();
	struct received *packet;
	struct segment *segment;
	unsigned char *header;
	owners_t owners;
	u16 ports[2];
	u32 zero = 0;
	bool is_whole;
	int shift;

	if (!config || !cpu || is_serving_softirq(cpu))
		return 0;
	packet = get_received(identity_of(skb, config));
	if (!packet || !is_udp(skb))
		return 0;
	is_whole = !is_piece(packet);
	if (is_whole && !is_received(packet, skb))
		return 0;
	/*
	 * Never received: an outgoing datagram, at an address known from an earlier packet. Copies
	 * are freed for each address that ARP asks for, neigh_probe(), net/core/neighbour.c.
	 */
	if (!READ(skb, skb_iif))
		return 0;
	packet->tag = 0;
	segment = datagrams.lookup(&zero);
	if (!packet->first_ns || !segment)
		return 0;
	header = READ(skb, head) + READ(skb, transport_header);
	bpf_probe_read_kernel(ports, sizeof(ports), header);
	owners = look_up_reader(config, packet->netns, bpf_ntohs(ports[1]), bpf_ntohs(ports[0]));
	if (!is_whole) {
		count_for(config, owners, COUNTER_FRAGMENTED_PACKETS);
		unmatched_for(config, owners, STAGE_RX_SOCKET, 1);
		return 0;
	}
	segment->queued_ns = packet->device_ns;
	fill_segment(segment, packet, 0, false);
	note_last_reader(segment, 0);
	note_reader(bpf_get_current_pid_tgid());
	/*
	 * Unrolled: before 6.7 the verifier regards a loop whose variable is on the stack as
	 * endless, states_maybe_looping(), kernel/bpf/verifier.c.
	 */
#pragma unroll
	for (shift = 0; shift < 64; shift += OWNER_BITS)
		if (owners >> shift)
			record_packet(config, first_slot(owners >> shift), segment,
				      bpf_ktime_get_ns());
	if (owners)
		trace_received(0, PROTOCOL_UDP, owners, segment, bpf_get_current_pid_tgid());
	return 0;
}

#endif
