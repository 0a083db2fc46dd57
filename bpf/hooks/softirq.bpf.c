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

/* __handle_irq_event_percpu(), kernel/irq/handle.c; interrupts are disabled until the exit */
int on_irq_handler_entry(u64 *ctx)
{
	struct cpu_context *cpu = get_cpu_context();

	if (cpu)
		cpu->hard_irq_ns = bpf_ktime_get_ns();
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
#ifdef MODULE_IRQ
	if (entered_ns)
		record_handler(ctx[0], (struct irqaction *)ctx[1], bpf_ktime_get_ns() - entered_ns);
#endif
	return 0;
}

/* __raise_softirq_irqoff(), kernel/softirq.c; also where it is pending already */
int on_softirq_raise(u64 *ctx)
{
	struct cpu_context *cpu;
	u32 vector = ctx[0];

	raise_vector(vector);
#ifdef MODULE_RX
	if (vector != NET_RX_SOFTIRQ)
		return 0;
	cpu = get_cpu_context();
	/* The first of several hard IRQs before the softirq: the others' packets wait no longer. */
	if (cpu && cpu->hard_irq_ns && !cpu->raised_ns)
		cpu->raised_ns = cpu->hard_irq_ns;
#endif
	return 0;
}

#endif

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
	}
	return 0;
}

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
