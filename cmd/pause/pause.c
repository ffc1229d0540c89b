// SPDX-License-Identifier: Apache-2.0

// pause is the process that holds a pod's namespaces open: it sleeps, reaps the orphans of a pod that shares its
// process namespace, and exits on SIGTERM or SIGINT. It is not Go, because one runs in every pod: without a C library
// and a runtime it is a file of about one kilobyte with a single page of its own memory.
//
// Build: cc -static -nostdlib -ffreestanding (packaging/embedded.sh).

enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17 };
enum { SIG_BLOCK = 0, WNOHANG = 1, EINTR = 4 };

#define SIGBIT(n) (1UL << ((n) - 1))

#if defined(__x86_64__)
enum { NR_rt_sigprocmask = 14, NR_wait4 = 61, NR_rt_sigtimedwait = 128, NR_exit_group = 231 };

static long sys4(long nr, long a, long b, long c, long d) {
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
enum { NR_rt_sigprocmask = 135, NR_wait4 = 260, NR_rt_sigtimedwait = 137, NR_exit_group = 94 };

static long sys4(long nr, long a, long b, long c, long d) {
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#else
#error "pause knows amd64 and arm64 only"
#endif

static void leave(int code) {
	for (;;)
		sys4(NR_exit_group, code, 0, 0, 0);
}

void _start(void) {
	// Blocked signals queue up even for process 1, whose default action would be to ignore them, so no handler is needed.
	unsigned long set = SIGBIT(SIGINT) | SIGBIT(SIGTERM) | SIGBIT(SIGCHLD);
	if (sys4(NR_rt_sigprocmask, SIG_BLOCK, (long)&set, 0, sizeof set) != 0)
		leave(1);
	for (;;) {
		long sig = sys4(NR_rt_sigtimedwait, (long)&set, 0, 0, sizeof set);
		if (sig == SIGCHLD) {
			while (sys4(NR_wait4, -1, 0, WNOHANG, 0) > 0)
				;
		} else if (sig == SIGINT || sig == SIGTERM) {
			leave(0);
		} else if (sig != -EINTR) {
			leave(2);
		}
	}
}
