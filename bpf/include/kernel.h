/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's types and the few constants that we use.
 *
 * FROM_BTF 1: the types come from the running kernel's BTF, which has no macros, so the constants
 * are stated here. FROM_BTF 0: both come from the kernel's headers; fields that differ between
 * kernels are selected by the version instead of by BTF.
 */

#if FROM_BTF

#include <latencyprobe/kernel_types.h>

#define AF_INET 2
#define AF_INET6 10
/* include/uapi/linux/if_ether.h */
#define ETH_P_IP 0x0800
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86DD
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_FRAGMENT 44 /* of IPv6 */

/* include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10
#define TCP_CLOSING 11
#define TCP_NEW_SYN_RECV 12

/* include/net/tcp.h */
#define TCPHDR_FIN 0x01
#define TCPHDR_SYN 0x02
#define TCPHDR_RST 0x04
#define TCPCB_EVER_RETRANS 0x80 /* of a segment that waits for its ACK: it was sent again */

/* enum tcp_ca_state, include/uapi/linux/tcp.h */
#define TCP_CA_Recovery 3
#define TCP_CA_Loss 4

/* include/linux/socket.h */
#define MSG_PEEK 0x2
#define MSG_ERRQUEUE 0x2000

/* include/uapi/asm-generic/errno.h */
#define ENETUNREACH 101
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define EHOSTUNREACH 113

/* include/linux/net.h */
#define SOCK_STREAM 1
#define SOCK_DGRAM 2

#define RCV_SHUTDOWN 1	 /* include/net/sock.h */
#define SK_PACING_NONE 0 /* enum sk_pacing, the same file */
#define SOCK_DEAD 0	 /* enum sock_flags, the same file */
#define SOCK_DONE 1
#define IFF_LOOPBACK 0x8 /* include/uapi/linux/if.h */

#define TCQ_F_MQROOT 8 /* include/net/sch_generic.h */

#define NET_RX_SOFTIRQ 3     /* include/linux/interrupt.h */
#define SOFTIRQ_OFFSET 0x100 /* include/linux/preempt.h */

/* include/linux/sched.h */
#define TASK_DEAD 0x80
#define PF_KTHREAD 0x00200000

#else

#include <linux/cgroup-defs.h>
#include <linux/errqueue.h>
#include <linux/interrupt.h>
#include <linux/kernfs.h>
#include <linux/netdevice.h>
#include <linux/nsproxy.h>
#include <linux/ptrace.h>
#include <linux/sched/signal.h>
#include <linux/skbuff.h>
#include <linux/udp.h>
#include <net/net_namespace.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0) /* in linux/netdevice.h before */
#include <net/netdev_rx_queue.h>
#endif
#include <net/rtnetlink.h>
#include <net/sock.h>
#include <net/tcp.h>

#undef READ /* linux/kernel.h has one; ours is in common.h */

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0) /* commit ad892e912b84 */
#define HAVE_tcp_retransmit_skb_err 1
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
#define HAVE_kfree_skb_rx_sk 1
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
#define HAVE_sock_recv_length_sk 1
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
#define HAVE_net_device_priv 1
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 9, 0)
#define HAVE_net_device_xdp_state 1
#endif
#ifdef CONFIG_RPS
#define HAVE_netdev_rx_queue_rps_map 1
#endif
#ifdef CONFIG_MPTCP
#define HAVE_tcp_sock_is_mptcp 1
#endif
#ifdef CONFIG_SMP
#define HAVE_task_struct_on_cpu 1
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 16, 0) /* commit bcf9033e5449 */
#define HAVE_thread_info_cpu 1
#elif defined(CONFIG_THREAD_INFO_IN_TASK)
#define HAVE_task_struct_cpu 1
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 14, 0) /* commit 2f064a59a11f */
#define HAVE_task_struct___state 1
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 15, 0) /* commit 8520e224f547, backported */
#define HAVE_sock_cgroup_data_cgroup 1
#endif
#ifdef CONFIG_SCHED_INFO
#define HAVE_sched_info_run_delay 1
#endif
#ifdef CONFIG_IPV6
#define HAVE_sock_common_skc_v6_daddr 1
#endif

#endif
