/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The translation unit: all other files are included here, in this order.
 *
 * The agent compiles it behind the macros FROM_BTF, TYPED, TRACE, HOST_NETNS, MODULE_*, WITH_*, DROP_*
 * and all constants of kernel/abi.py, whose layouts follow as static assertions. bcc rewrites map
 * accesses in the main file alone, so it gets each file in the place of its #include
 * (kernel/build/source.py).
 */

#ifndef FROM_BTF /* not by the agent: an editor should see all of it, as for a new kernel */
#define FROM_BTF 1
#define TYPED 1
#define TRACE 1
#define MODULE_IRQ 1
#define MODULE_SCHED 1
#define MODULE_RX 1
#define MODULE_TX 1
#define MODULE_TCP 1
#endif

#include "include/kernel.h"
#include "include/common.h"
#include "include/histogram.h"
#include "include/targets.h"
#include "include/notes.h"
#include "include/rooms.h"
#include "include/devices.h"
#include "include/trace.h"
#include "include/sockets.h"

#ifdef MODULE_IRQ
#include "modules/irq.bpf.c"
#endif
#ifdef MODULE_SCHED /* before rx, which uses it for a packet's reader */
#include "modules/waits.bpf.c"
#include "modules/sched.bpf.c"
#endif
#ifdef MODULE_RX
#include "modules/rx.bpf.c"
#include "modules/arrivals.bpf.c"
#include "modules/queries.bpf.c"
#endif
#ifdef MODULE_TX
#include "modules/send.bpf.c"
#include "modules/devices.bpf.c"
#include "modules/tx.bpf.c"
#include "modules/departures.bpf.c"
#include "modules/driver.bpf.c"
#endif
#ifdef MODULE_TCP
#include "modules/listeners.bpf.c"
#include "modules/turns.bpf.c"
#include "modules/recovery.bpf.c"
#include "modules/tcp.bpf.c"
#include "modules/paths.bpf.c"
#include "modules/drops.bpf.c"
#endif
#if defined(MODULE_RX) || defined(MODULE_TX) || defined(MODULE_TCP)
#include "modules/peers.bpf.c"
#include "modules/pending.bpf.c"
#endif

/* Hooks that modules share. */
#if defined(MODULE_RX) || defined(MODULE_TX) || defined(MODULE_IRQ)
#include "hooks/softirq.bpf.c"
#endif
#if defined(MODULE_RX) || defined(MODULE_TCP)
#include "hooks/segment.bpf.c"
#include "hooks/read.bpf.c"
#include "hooks/ready.bpf.c"
#endif
#if defined(MODULE_TX) || defined(MODULE_TCP)
#include "hooks/sendmsg.bpf.c"
#endif
