/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hooks of softirqs and hard IRQs, which the modules rx, tx and irq share.
 *
 * NET_RX is raised by a NIC's hard IRQ handler, by napi_schedule(), by a process or a softirq that
 * sent through a veth or the loopback device, or by itself when its budget ran out,
 * net_rx_action(), net/core/dev.c. Only the first has a hard IRQ from which to measure.
 */

#ifndef MODULE_IRQ
static __always_inline void raise_vector(u32 vector)
{
}

static __always_inline void enter_vector(u32 vector)
{
}

static __always_inline void exit_vector(u32 vector)
{
}

static __always_inline void record_handler(u32 irq, struct irqaction *action, u64 ns)
{
}
#endif

#if defined(MODULE_RX) || defined(MODULE_IRQ)

#if defined(MODULE_RX) && defined(WITH_SOFTIRQ_PENDING)

#define IRQS 4096 /* must be a power of two; higher numbers share a place */

/* One bit an interrupt, set for those that were seen to raise NET_RX: they are NICs'. */
BPF_ARRAY(net_irqs, u64, IRQS / 64);

/* local_softirq_pending(), include/linux/interrupt.h */
static __always_inline bool is_net_rx_pending(struct cpu_context *cpu)
{
	return READ_PERCPU(run_queue_of(cpu), SOFTIRQ_PENDING) >> NET_RX_SOFTIRQ & 1;
}

static __always_inline void note_pending(struct cpu_context *cpu)
{
	cpu->was_pending = is_net_rx_pending(cpu);
}

/*
 * A handler after which NET_RX is pending has raised it, unless it was pending before: something
 * else had raised it then. But an interrupt that did raise it once does so again.
 */
static __always_inline void note_raise(struct cpu_context *cpu, u32 irq, u64 entered_ns)
{
	u32 index = (irq & (IRQS - 1)) / 64;
	u64 bit = 1ULL << (irq & 63);
	u64 *bits;

	/* The first of several hard IRQs before the softirq: the others' packets wait no longer. */
	if (!entered_ns || cpu->raised_ns || !is_net_rx_pending(cpu))
		return;
	bits = net_irqs.lookup(&index);
	if (!bits || (cpu->was_pending && !(*bits & bit)))
		return;
	if (!cpu->was_pending && !(*bits & bit))
		*bits |= bit;
	cpu->raised_ns = entered_ns;
}

#else

static __always_inline void note_pending(struct cpu_context *cpu)
{
}

static __always_inline void note_raise(struct cpu_context *cpu, u32 irq, u64 entered_ns)
{
}

#endif

/* __handle_irq_event_percpu(), kernel/irq/handle.c; interrupts are disabled until the exit */
int on_irq_handler_entry(u64 *ctx)
{
	struct cpu_context *cpu = get_cpu_context();

	if (!cpu)
		return 0;
	cpu->hard_irq_ns = bpf_ktime_get_ns();
	note_pending(cpu);
	return 0;
}

int on_irq_handler_exit(u64 *ctx)
{
	struct cpu_context *cpu = get_cpu_context();
	u64 entered_ns;

	if (!cpu)
		return 0;
	entered_ns = cpu->hard_irq_ns;
	cpu->hard_irq_ns = 0;
	note_raise(cpu, ctx[0], entered_ns);
#ifdef MODULE_IRQ
	if (entered_ns)
		record_handler(ctx[0], (struct irqaction *)ctx[1], bpf_ktime_get_ns() - entered_ns);
#endif
	return 0;
}

#ifdef WITH_ON_SOFTIRQ_RAISE

/* __raise_softirq_irqoff(), kernel/softirq.c; also where it is pending already */
int on_softirq_raise(u64 *ctx)
{
	u32 vector = ctx[0];

	raise_vector(vector);
#if defined(MODULE_RX) && !defined(WITH_SOFTIRQ_PENDING)
	if (vector == NET_RX_SOFTIRQ) {
		struct cpu_context *cpu = get_cpu_context();

		/* the first of several hard IRQs: see note_raise() */
		if (cpu && cpu->hard_irq_ns && !cpu->raised_ns)
			cpu->raised_ns = cpu->hard_irq_ns;
	}
#endif
	return 0;
}

#endif

#endif

#ifdef WITH_ON_SOFTIRQ_ENTRY

/* handle_softirqs(), kernel/softirq.c; ksoftirqd runs the same function */
int on_softirq_entry(u64 *ctx)
{
	struct cpu_context *cpu = get_cpu_context();
	u32 vector = ctx[0];

	enter_vector(vector);
	if (!cpu)
		return 0;
	cpu->in_softirq = 1;
	if (vector == NET_RX_SOFTIRQ) {
		u64 now = bpf_ktime_get_ns(), raised_ns = cpu->raised_ns;

		cpu->net_rx_ns = now;
		cpu->raised_ns = 0;
		cpu->irq_ns = raised_ns && now - raised_ns <= 0xffffffffU ? now - raised_ns : 0;
	} else {
		cpu->net_rx_ns = 0;
	}
	return 0;
}

#endif

#ifdef WITH_ON_SOFTIRQ_EXIT

int on_softirq_exit(u64 *ctx)
{
	struct cpu_context *cpu = get_cpu_context();

	exit_vector(ctx[0]);
	if (!cpu)
		return 0;
	cpu->in_softirq = 0;
	cpu->net_rx_ns = 0;
	return 0;
}

#endif
