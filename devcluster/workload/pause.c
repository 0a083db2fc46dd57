/*
 * What holds a pod's namespaces open: waits for a signal and goes.
 *
 * It is the sandbox container of every pod (containerd's sandbox_image) and the only container
 * of the agent's placeholder pods. As process 1 of a PID namespace it must install a handler:
 * the kernel drops signals with the default action for an init process (sig_task_ignored()).
 */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int signal_number)
{
	(void)signal_number;
	_exit(0);
}

static void reap(int signal_number)
{
	(void)signal_number;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void)
{
	signal(SIGINT, leave);
	signal(SIGTERM, leave);
	signal(SIGCHLD, reap);
	for (;;)
		pause();
}
