// SPDX-License-Identifier: Apache-2.0
/*
 * TCP requests and responses between two network namespaces, one outstanding at a time.
 *
 *   request_response CLIENT_NETNS SERVER_NETNS SERVER_ADDRESS CPU BYTES
 *
 * Reads numbers of milliseconds from standard input, one a line. For each it opens a connection,
 * exchanges for so long, and prints "TRANSACTIONS NANOSECONDS", both without a warm-up of 200
 * transactions. Ends with its input.
 *
 * Without a server ("-" for its namespace), port 7 of the address answers, far_end.c for one.
 *
 * Client and server share one CPU: a transaction then costs the CPU time that it costs, without the
 * wake-up of an idle CPU, which on virtual machines takes longer than everything else.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_BYTES 65536
#define WARM_UP_TRANSACTIONS 200
#define ECHO_PORT 7

static char buffer[MOST_BYTES];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void enter(const char *netns)
{
	int fd = open(netns, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(netns);
	close(fd);
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static unsigned long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static int open_socket(void)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		die("socket");
	return fd;
}

/* All bytes of one message; 0 when the other side has closed. */
static int receive(int fd, size_t bytes)
{
	size_t done = 0;

	while (done < bytes) {
		ssize_t got = recv(fd, buffer + done, bytes - done, 0);

		if (got <= 0)
			return 0;
		done += got;
	}
	return 1;
}

static void give(int fd, size_t bytes)
{
	size_t done = 0;

	while (done < bytes) {
		ssize_t sent = send(fd, buffer + done, bytes - done, MSG_NOSIGNAL);

		if (sent <= 0)
			die("send");
		done += sent;
	}
}

static void serve(int listener, size_t bytes)
{
	for (;;) {
		int one = 1, fd = accept(listener, NULL, NULL);

		if (fd < 0)
			die("accept");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		while (receive(fd, bytes))
			give(fd, bytes);
		close(fd);
	}
}

static void exchange(int fd, size_t bytes)
{
	give(fd, bytes);
	if (!receive(fd, bytes))
		die("recv");
}

static void measure(const struct sockaddr_in *server, size_t bytes, unsigned long long length_ns)
{
	unsigned long long begun, now, transactions = 0;
	int i, fd = open_socket();

	if (connect(fd, (const struct sockaddr *)server, sizeof(*server)))
		die("connect");
	for (i = 0; i < WARM_UP_TRANSACTIONS; i++)
		exchange(fd, bytes);
	begun = now_ns();
	do {
		exchange(fd, bytes);
		transactions++;
		now = now_ns();
	} while (now - begun < length_ns);
	close(fd);
	printf("%llu %llu\n", transactions, now - begun);
	fflush(stdout);
}

/* A process that answers on a port of its own, which goes into the address. */
static void start_server(const char *netns, struct sockaddr_in *address, size_t bytes)
{
	socklen_t length = sizeof(*address);
	pid_t parent = getpid();
	int listener;

	enter(netns);
	listener = open_socket();
	if (bind(listener, (struct sockaddr *)address, length) || listen(listener, 8) ||
	    getsockname(listener, (struct sockaddr *)address, &length))
		die("listen");
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			serve(listener, bytes);
		exit(0);
	}
	close(listener);
}

int main(int argc, char **argv)
{
	struct sockaddr_in server = { .sin_family = AF_INET };
	size_t bytes;
	char line[64];

	if (argc != 6)
		return 2;
	bytes = atoi(argv[5]);
	if (!bytes || bytes > MOST_BYTES || inet_pton(AF_INET, argv[3], &server.sin_addr) != 1)
		return 2;
	pin(atoi(argv[4]));
	if (strcmp(argv[2], "-"))
		start_server(argv[2], &server, bytes);
	else
		server.sin_port = htons(ECHO_PORT);
	enter(argv[1]);
	while (fgets(line, sizeof(line), stdin))
		measure(&server, bytes, atoll(line) * 1000000ULL);
	return 0;
}
