/*
 * The pods' workload: a TCP server and a client that exchange requests and count them.
 *
 *   workload server --port P [--read-delay-ms N] [--delay-ms N]
 *   workload client --port P [--rate R] [--count N [--exit-when-done]] HOST... | --hosts-file F
 *   workload hosts FILE HOST...
 *
 * The server answers each 64-byte request with 128 bytes. Its delays hold up its only thread, so
 * that they are felt as a busy program's are: --read-delay-ms between the arrival of bytes and
 * their being read, --delay-ms between a request and its response.
 *
 * The client keeps one connection to each server, with one request in flight on it, and takes
 * turns between them at R requests a second in all (0: each as soon as the last was answered).
 * With --count it sends exactly N requests to each server, then keeps its connections, idle,
 * unless it is to exit. The hosts file is read again every 200 ms: one address a line. A
 * connection that breaks is made again, once every 100 ms at most.
 *
 * `hosts` writes such a file in one step; an image without a shell has nothing else to do it with.
 *
 * Both print one JSON line a second with totals since the start, and one more at the end. The
 * totals are of whole requests and responses. SIGTERM ends either at once.
 *
 * It links statically and needs no file besides itself.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	REQUEST_BYTES = 64,
	RESPONSE_BYTES = 128,
	MAX_CONNECTIONS = 4096, /* of a server; more are refused */
	MAX_SERVERS = 64,	/* of a client */
	EVENTS = 64,
};

static const uint64_t SECOND_NS = 1000000000ull;
static const uint64_t REPORT_NS = 1000000000ull;
static const uint64_t HOSTS_FILE_NS = 200000000ull;
static const uint64_t RECONNECT_NS = 100000000ull;

static volatile sig_atomic_t stopping;

static void stop(int signal_number)
{
	(void)signal_number;
	stopping = 1;
}

static void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("workload: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(2);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * SECOND_NS + now.tv_nsec;
}

static void hold_up(unsigned int ms)
{
	struct timespec pause = { ms / 1000, ms % 1000 * 1000000l };

	while (ms && nanosleep(&pause, &pause) && errno == EINTR && !stopping)
		;
}

static void send_promptly(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* Neither end ever has more than one message in flight, so a socket buffer always has room. */
static bool send_message(int fd, size_t bytes)
{
	static const char message[RESPONSE_BYTES];

	return send(fd, message, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

/*
 * The number of bytes that arrived, at most `wanted`; 0 if none did; -1 if the connection is over.
 */
static ssize_t receive(int fd, size_t wanted)
{
	char bytes[RESPONSE_BYTES];
	ssize_t got = recv(fd, bytes, wanted, 0);

	if (got > 0)
		return got;
	return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static void watch(int epoll, int operation, int fd, uint32_t events, uint32_t index)
{
	struct epoll_event event = { .events = events, .data.u32 = index };

	if (epoll_ctl(epoll, operation, fd, &event))
		die("epoll_ctl: %s", strerror(errno));
}

/* --- Server --- */

struct server {
	int epoll, listener;
	unsigned int read_delay_ms, delay_ms;
	uint64_t requests, responses, accepts;
	unsigned int open;
	size_t partial[MAX_CONNECTIONS]; /* by descriptor: bytes of an unfinished request */
};

static int listen_on(uint16_t port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int off = 0, on = 1, fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, 1024))
		die("port %u: %s", port, strerror(errno));
	return fd;
}

static void accept_all(struct server *server)
{
	int fd;

	while ((fd = accept4(server->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if (fd >= MAX_CONNECTIONS) {
			close(fd);
			continue;
		}
		send_promptly(fd);
		server->partial[fd] = 0;
		server->accepts++;
		server->open++;
		watch(server->epoll, EPOLL_CTL_ADD, fd, EPOLLIN, fd);
	}
}

static void serve(struct server *server, int fd)
{
	ssize_t got;

	hold_up(server->read_delay_ms);
	got = receive(fd, REQUEST_BYTES - server->partial[fd]);
	if (got < 0)
		goto over;
	server->partial[fd] += got;
	if (server->partial[fd] < REQUEST_BYTES)
		return;
	server->partial[fd] = 0;
	server->requests++;
	hold_up(server->delay_ms);
	if (!send_message(fd, RESPONSE_BYTES))
		goto over;
	server->responses++;
	return;
over:
	close(fd);
	server->open--;
}

static void report_server(const struct server *server)
{
	printf("{\"requests\":%llu,\"responses\":%llu,\"accepts\":%llu,\"open\":%u}\n",
	       (unsigned long long)server->requests, (unsigned long long)server->responses,
	       (unsigned long long)server->accepts, server->open);
	fflush(stdout);
}

static int run_server(uint16_t port, unsigned int read_delay_ms, unsigned int delay_ms)
{
	static struct server server;
	uint64_t report_at = now_ns();

	server.read_delay_ms = read_delay_ms;
	server.delay_ms = delay_ms;
	server.epoll = epoll_create1(EPOLL_CLOEXEC);
	server.listener = listen_on(port);
	watch(server.epoll, EPOLL_CTL_ADD, server.listener, EPOLLIN, server.listener);
	while (!stopping) {
		struct epoll_event events[EVENTS];
		uint64_t now = now_ns();
		int ready;

		if (now >= report_at) {
			report_server(&server);
			report_at = now + REPORT_NS;
		}
		ready = epoll_wait(server.epoll, events, EVENTS, (report_at - now) / 1000000 + 1);
		for (int i = 0; i < ready && !stopping; i++) {
			int fd = events[i].data.u32;

			if (fd == server.listener)
				accept_all(&server);
			else
				serve(&server, fd);
		}
	}
	report_server(&server);
	return 0;
}

/* --- Client --- */

enum state { DISCONNECTED, CONNECTING, IDLE, WAITING };

struct peer {
	char host[INET6_ADDRSTRLEN];
	enum state state;
	bool wanted; /* still in the hosts file */
	int fd;
	size_t received; /* bytes of an unfinished response */
	uint64_t retry_at;
	uint64_t requests, responses, connects;
};

struct client {
	int epoll;
	uint16_t port;
	uint64_t interval_ns; /* between requests; 0: none */
	uint64_t count;	      /* requests to each server; 0: no end */
	bool exit_when_done;
	const char *hosts_file;
	uint64_t started, report_at, hosts_at, send_at;
	unsigned int turn;
	unsigned int peers;
	struct peer peer[MAX_SERVERS];
};

static void add_host(struct client *client, const char *host)
{
	for (unsigned int i = 0; i < client->peers; i++) {
		if (!strcmp(client->peer[i].host, host)) {
			client->peer[i].wanted = true;
			return;
		}
	}
	if (client->peers == MAX_SERVERS)
		die("more than %d servers", MAX_SERVERS);
	if (strlen(host) >= INET6_ADDRSTRLEN)
		die("%s is not an IP address", host);
	client->peer[client->peers] = (struct peer){ .wanted = true, .fd = -1 };
	strcpy(client->peer[client->peers++].host, host);
}

static socklen_t address_of(const char *host, uint16_t port, struct sockaddr_storage *address)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;

	memset(address, 0, sizeof(*address));
	if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		return sizeof(*v4);
	}
	if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(port);
		return sizeof(*v6);
	}
	die("%s is not an IP address", host);
	return 0;
}

static void disconnect(struct peer *peer)
{
	if (peer->fd >= 0)
		close(peer->fd);
	peer->fd = -1;
	peer->state = DISCONNECTED;
	peer->received = 0;
	peer->retry_at = now_ns() + RECONNECT_NS;
}

static void start_connecting(struct client *client, unsigned int index)
{
	struct peer *peer = &client->peer[index];
	struct sockaddr_storage address;
	socklen_t length = address_of(peer->host, client->port, &address);

	peer->fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (peer->fd < 0)
		die("socket: %s", strerror(errno));
	send_promptly(peer->fd);
	if (connect(peer->fd, (struct sockaddr *)&address, length) && errno != EINPROGRESS) {
		disconnect(peer);
		return;
	}
	peer->state = CONNECTING;
	watch(client->epoll, EPOLL_CTL_ADD, peer->fd, EPOLLOUT, index);
}

static void finish_connecting(struct client *client, unsigned int index)
{
	struct peer *peer = &client->peer[index];
	socklen_t length = sizeof(int);
	int error = 0;

	getsockopt(peer->fd, SOL_SOCKET, SO_ERROR, &error, &length);
	if (error) {
		disconnect(peer);
		return;
	}
	peer->state = IDLE;
	peer->connects++;
	watch(client->epoll, EPOLL_CTL_MOD, peer->fd, EPOLLIN, index);
}

static void take_response(struct peer *peer)
{
	ssize_t got = receive(peer->fd, RESPONSE_BYTES - peer->received);

	if (got < 0) {
		disconnect(peer);
		return;
	}
	peer->received += got;
	if (peer->received < RESPONSE_BYTES)
		return;
	peer->received = 0;
	peer->responses++;
	peer->state = IDLE;
}

static bool may_send(const struct client *client, const struct peer *peer)
{
	return peer->state == IDLE && (!client->count || peer->requests < client->count);
}

static bool send_request(struct peer *peer)
{
	if (!send_message(peer->fd, REQUEST_BYTES)) {
		disconnect(peer);
		return false;
	}
	peer->requests++;
	peer->state = WAITING;
	return true;
}

/* Sends to the next server in turn that can take a request; false if none can. */
static bool take_turn(struct client *client)
{
	for (unsigned int i = 0; i < client->peers; i++) {
		struct peer *peer = &client->peer[client->turn++ % client->peers];

		if (may_send(client, peer) && send_request(peer))
			return true;
	}
	return false;
}

/* A late request is sent at once, but a missed one is not made up for: no bursts. */
static void send_what_is_due(struct client *client, uint64_t now)
{
	if (!client->interval_ns) {
		while (take_turn(client))
			;
		return;
	}
	if (now < client->send_at || !take_turn(client))
		return;
	client->send_at += client->interval_ns;
	if (client->send_at < now)
		client->send_at = now;
}

static bool is_done(const struct client *client)
{
	if (!client->count || !client->peers)
		return false;
	for (unsigned int i = 0; i < client->peers; i++) {
		const struct peer *peer = &client->peer[i];

		if (peer->wanted && (peer->requests < client->count || peer->state == WAITING))
			return false;
	}
	return true;
}

static void report_client(const struct client *client)
{
	const char *comma = "";

	printf("{\"elapsed_ms\":%llu,\"done\":%s,\"servers\":{",
	       (unsigned long long)((now_ns() - client->started) / 1000000),
	       is_done(client) ? "true" : "false");
	for (unsigned int i = 0; i < client->peers; i++) {
		const struct peer *peer = &client->peer[i];

		printf("%s\"%s\":{\"requests\":%llu,\"responses\":%llu,\"connects\":%llu}", comma,
		       peer->host, (unsigned long long)peer->requests,
		       (unsigned long long)peer->responses, (unsigned long long)peer->connects);
		comma = ",";
	}
	puts("}}");
	fflush(stdout);
}

static void read_hosts_file(struct client *client)
{
	FILE *file = fopen(client->hosts_file, "re");
	char host[INET6_ADDRSTRLEN + 1];

	if (!file)
		return;
	for (unsigned int i = 0; i < client->peers; i++)
		client->peer[i].wanted = false;
	while (fscanf(file, "%46s", host) == 1)
		add_host(client, host);
	fclose(file);
}

static void keep_connected(struct client *client, uint64_t now)
{
	for (unsigned int i = 0; i < client->peers; i++) {
		struct peer *peer = &client->peer[i];

		if (!peer->wanted && peer->state != WAITING && peer->fd >= 0)
			disconnect(peer);
		if (peer->wanted && peer->state == DISCONNECTED && now >= peer->retry_at)
			start_connecting(client, i);
	}
}

static void handle_event(struct client *client, unsigned int index)
{
	struct peer *peer = &client->peer[index];

	if (peer->state == CONNECTING)
		finish_connecting(client, index);
	else if (peer->fd >= 0)
		take_response(peer);
}

static void do_what_time_asks_for(struct client *client, uint64_t now)
{
	if (client->hosts_file && now >= client->hosts_at) {
		read_hosts_file(client);
		client->hosts_at = now + HOSTS_FILE_NS;
	}
	keep_connected(client, now);
	send_what_is_due(client, now);
	if (now >= client->report_at) {
		report_client(client);
		client->report_at = now + REPORT_NS;
	}
}

/*
 * Waits until the next request is due, and never longer than RECONNECT_NS. `now` is when the due
 * one was sent: a request that is overdue since then waits for a server, which is an event.
 *
 * Of the calls that take nanoseconds, epoll_pwait2() needs Linux 5.11; but an epoll descriptor can
 * itself be polled.
 */
static int wait_for_events(const struct client *client, uint64_t now, struct epoll_event *events)
{
	struct pollfd epoll = { .fd = client->epoll, .events = POLLIN };
	uint64_t until = now + RECONNECT_NS;
	struct timespec timeout = { 0 };

	if (client->interval_ns && client->send_at > now && client->send_at < until)
		until = client->send_at;
	now = now_ns();
	if (until > now)
		timeout.tv_nsec = until - now; /* RECONNECT_NS is under a second */
	if (ppoll(&epoll, 1, &timeout, NULL) <= 0)
		return 0;
	return epoll_wait(client->epoll, events, EVENTS, 0);
}

static int run_client(struct client *client)
{
	client->epoll = epoll_create1(EPOLL_CLOEXEC);
	client->started = client->send_at = now_ns();
	client->report_at = client->started + REPORT_NS;
	while (!stopping && !(client->exit_when_done && is_done(client))) {
		struct epoll_event events[EVENTS];
		uint64_t now = now_ns();
		int ready;

		do_what_time_asks_for(client, now);
		ready = wait_for_events(client, now, events);
		for (int i = 0; i < ready; i++)
			handle_event(client, events[i].data.u32);
	}
	report_client(client);
	return 0;
}

/* --- Command line --- */

static int write_hosts(const char *path, char **hosts)
{
	char temporary[4096];
	FILE *file;

	if (snprintf(temporary, sizeof(temporary), "%s.new", path) >= (int)sizeof(temporary))
		die("%s: name too long", path);
	file = fopen(temporary, "we");
	if (!file)
		die("%s: %s", temporary, strerror(errno));
	for (; *hosts; hosts++)
		fprintf(file, "%s\n", *hosts);
	if (fclose(file) || rename(temporary, path))
		die("%s: %s", path, strerror(errno));
	return 0;
}

struct options {
	unsigned long port, rate, count, read_delay_ms, delay_ms;
	bool exit_when_done;
	const char *hosts_file;
	char **hosts; /* what follows the options, NULL-terminated */
};

static unsigned long number(const char *option, const char *text)
{
	char *end;
	unsigned long value;

	if (!text || *text < '0' || *text > '9')
		die("%s needs a number", option);
	value = strtoul(text, &end, 10);
	if (*end)
		die("%s needs a number, not %s", option, text);
	return value;
}

static struct options parse(char **argument)
{
	struct options options = { .rate = 100 };

	for (; *argument && !strncmp(*argument, "--", 2); argument++) {
		const char *name = *argument;

		if (!strcmp(name, "--exit-when-done"))
			options.exit_when_done = true;
		else if (!strcmp(name, "--hosts-file") && argument[1])
			options.hosts_file = *++argument;
		else if (!strcmp(name, "--port"))
			options.port = number(name, *++argument);
		else if (!strcmp(name, "--rate"))
			options.rate = number(name, *++argument);
		else if (!strcmp(name, "--count"))
			options.count = number(name, *++argument);
		else if (!strcmp(name, "--read-delay-ms"))
			options.read_delay_ms = number(name, *++argument);
		else if (!strcmp(name, "--delay-ms"))
			options.delay_ms = number(name, *++argument);
		else
			die("unknown option %s", name);
	}
	if (!options.port || options.port > 65535)
		die("--port must be from 1 to 65535");
	options.hosts = argument;
	return options;
}

static int client_main(const struct options *options)
{
	static struct client client;

	client.port = options->port;
	client.interval_ns = options->rate ? SECOND_NS / options->rate : 0;
	client.count = options->count;
	client.exit_when_done = options->exit_when_done;
	client.hosts_file = options->hosts_file;
	if (!options->hosts_file && !*options->hosts)
		die("client needs servers: HOST... or --hosts-file F");
	for (char **host = options->hosts; *host; host++)
		add_host(&client, *host);
	return run_client(&client);
}

int main(int argc, char **argv)
{
	struct options options;

	/* As process 1 of its container it would ignore signals it has no handler for. */
	signal(SIGTERM, stop);
	signal(SIGINT, stop);
	if (argc >= 3 && !strcmp(argv[1], "hosts"))
		return write_hosts(argv[2], argv + 3);
	if (argc < 2 || (strcmp(argv[1], "server") && strcmp(argv[1], "client")))
		die("usage: workload server|client|hosts ...");
	options = parse(argv + 2);
	if (!strcmp(argv[1], "server"))
		return run_server(options.port, options.read_delay_ms, options.delay_ms);
	return client_main(&options);
}
