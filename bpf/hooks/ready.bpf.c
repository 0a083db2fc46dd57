/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hook that the modules rx and tcp share: a socket has something for its reader.
 */

#ifdef WITH_ON_SK_DATA_READY

/* Only on_sock_recv_length() empties the ring of datagrams. */
#if defined(MODULE_RX) && defined(WITH_ON_SOCK_RECV_LENGTH) && defined(HAVE_sock_recv_length_sk)
#define WITH_DATAGRAMS 1
#endif

/*
 * sock_def_readable(), net/core/sock.c, 6.2+. From __udp_enqueue_schedule_skb() once per datagram;
 * from tcp_child_process() for the listener of a new connection, where nothing else reads it.
 */
int on_sk_data_ready(u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct config *config = get_config();
	struct socket_state *state;
	struct turned_away away = {};
	bool is_wanted = false;
	u32 protocol;

	if (!config)
		return 0;
	protocol = protocol_of(sk);
#ifdef MODULE_TCP
	if (protocol == PROTOCOL_TCP)
		is_wanted = !config->reads_listeners && is_listener(sk);
#endif
#ifdef WITH_DATAGRAMS
	if (protocol == PROTOCOL_UDP)
		is_wanted = true;
#endif
	state = is_wanted ? get_state(sk, config, &away) : 0;
	if (!state) {
#ifdef WITH_DATAGRAMS
		if (protocol == PROTOCOL_UDP)
			lose_received(config, away.owners);
#endif
		return 0;
	}
#ifdef MODULE_TCP
	if (protocol == PROTOCOL_TCP)
		note_listener_drops(config, sk, state);
#endif
#ifdef WITH_DATAGRAMS
	if (protocol == PROTOCOL_UDP)
		queue_datagram(config, sk, state);
#endif
#ifdef WITH_QUERIES
	if (protocol == PROTOCOL_UDP)
		note_reply(config, sk, state);
#endif
	return 0;
}

#endif
