// SPDX-License-Identifier: Apache-2.0
/*
 * A NIC made of a tun device, and the host beyond it, which answers TCP.
 *
 *   far_end NETNS DEVICE CPU
 *
 * Makes the device in the namespace, prints "ready", and answers on every port of every address:
 * each segment with data gets its own bytes back. So a transaction costs one pass of a kernel's TCP
 * in either direction, as on a node whose peer is elsewhere. Nothing is sent again: no packet is
 * lost between them.
 *
 * IFF_NAPI: packets arrive by a softirq, as they do from a NIC.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MOST_BYTES 2048
#define FIRST_SEQUENCE 1
#define WINDOW 65535

struct packet {
	struct iphdr ip;
	struct tcphdr tcp;
	uint8_t rest[MOST_BYTES - sizeof(struct iphdr) - sizeof(struct tcphdr)];
} __attribute__((packed, aligned(4)));

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int open_device(const char *netns, const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI | IFF_NAPI };
	int own, device;

	own = open(netns, O_RDONLY | O_CLOEXEC);
	if (own < 0 || setns(own, CLONE_NEWNET))
		die(netns);
	close(own);
	strncpy(request.ifr_name, name, sizeof(request.ifr_name) - 1);
	device = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (device < 0 || ioctl(device, TUNSETIFF, &request))
		die("/dev/net/tun");
	return device;
}

static uint32_t sum_of(const void *data, size_t bytes, uint32_t sum)
{
	const uint8_t *at = data;

	for (; bytes > 1; bytes -= 2, at += 2)
		sum += at[0] << 8 | at[1];
	return bytes ? sum + (at[0] << 8) : sum;
}

static uint16_t checksum(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum);
}

/* Turns a segment into its answer; returns the answer's bytes, 0 for none. */
static size_t answer(struct packet *packet, size_t bytes)
{
	struct iphdr *ip = &packet->ip;
	struct tcphdr *tcp = &packet->tcp;
	uint32_t sequence, acknowledged;
	size_t data, headers = sizeof(*ip) + sizeof(*tcp);
	uint16_t port;

	if (bytes < headers || ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_TCP ||
	    bytes != ntohs(ip->tot_len) || bytes < sizeof(*ip) + 4 * tcp->doff || tcp->rst)
		return 0;
	data = bytes - sizeof(*ip) - 4 * tcp->doff;
	if (!data && !tcp->syn && !tcp->fin)
		return 0;
	memmove(packet->rest, (uint8_t *)tcp + 4 * tcp->doff, data);
	sequence = tcp->syn ? FIRST_SEQUENCE : ntohl(tcp->ack_seq);
	acknowledged = ntohl(tcp->seq) + data + tcp->syn + tcp->fin;
	port = tcp->source;
	*tcp = (struct tcphdr){
		.source = tcp->dest,
		.dest = port,
		.seq = htonl(sequence),
		.ack_seq = htonl(acknowledged),
		.doff = sizeof(*tcp) / 4,
		.syn = tcp->syn,
		.fin = tcp->fin,
		.psh = data > 0,
		.ack = 1,
		.window = htons(WINDOW),
	};
	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tot_len = htons(headers + data),
		.ttl = 64,
		.protocol = IPPROTO_TCP,
		.saddr = ip->daddr,
		.daddr = ip->saddr,
	};
	ip->check = checksum(sum_of(ip, sizeof(*ip), 0));
	tcp->check = checksum(sum_of(tcp, sizeof(*tcp) + data,
				     sum_of(&ip->saddr, 8, IPPROTO_TCP + sizeof(*tcp) + data)));
	return headers + data;
}

int main(int argc, char **argv)
{
	static struct packet packet;
	cpu_set_t cpus;
	int device;

	if (argc != 4)
		return 2;
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[3]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
	device = open_device(argv[1], argv[2]);
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t bytes = read(device, &packet, sizeof(packet));
		size_t answered;

		if (bytes < 0)
			die("read");
		answered = answer(&packet, bytes);
		if (answered && write(device, &packet, answered) < 0)
			die("write");
	}
}
