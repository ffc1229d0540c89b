// SPDX-License-Identifier: Apache-2.0

// nft becomes the embedded nft: that of the folder nftables beside this file, run by the loader and with the libraries
// that lie there, so that nothing of the host is used, /etc/protocols included (protocols.c). It is not Go, because it runs for every change of a rule: a
// Go program's start took twice as long as nft's own.
//
// Build: cc -static -nostdlib -ffreestanding (packaging/embedded.sh).

enum { AT_FDCWD = -100, MAX_PATH = 4096 };

#if defined(__x86_64__)
enum { NR_write = 1, NR_execve = 59, NR_exit_group = 231, NR_readlinkat = 267 };

static long sys4(long nr, long a, long b, long c, long d) {
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return ret;
}

__asm__(".text\n.globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall become\n");
#elif defined(__aarch64__)
enum { NR_write = 64, NR_execve = 221, NR_exit_group = 94, NR_readlinkat = 78 };

static long sys4(long nr, long a, long b, long c, long d) {
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}

__asm__(".text\n.globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tmov x0, sp\n\tbl become\n");
#else
#error "nft knows amd64 and arm64 only"
#endif

static void fail(const char *message, long length) {
	sys4(NR_write, 2, (long)message, length, 0);
	for (;;)
		sys4(NR_exit_group, 1, 0, 0, 0);
}

#define FAIL(message) fail(message "\n", sizeof message)

// join puts text behind the first bytes of path.
static void join(char *path, long length, const char *text) {
	do {
		if (length >= MAX_PATH)
			FAIL("nft: the path of the embedded nft is too long");
		path[length++] = *text;
	} while (*text++);
}

static char folder[MAX_PATH], loader[MAX_PATH], protocols[MAX_PATH], program[MAX_PATH];

// become is entered with what the kernel put on the stack: the number of arguments, they, and the environment behind them.
__attribute__((noreturn, used)) static void become(long *stack) {
	long argc = stack[0];
	char **argv = (char **)(stack + 1), **envp = argv + argc + 1;
	long length = sys4(NR_readlinkat, AT_FDCWD, (long)"/proc/self/exe", (long)folder, MAX_PATH);
	if (length <= 0 || length >= MAX_PATH)
		FAIL("nft: cannot find the embedded nft: /proc/self/exe cannot be read");
	while (length > 0 && folder[length - 1] != '/')
		length--;
	join(folder, length, "nftables");
	join(loader, 0, folder);
	join(loader, length, "nftables/ld.so");
	join(protocols, 0, folder);
	join(protocols, length, "nftables/protocols.so");
	join(program, 0, folder);
	join(program, length, "nftables/nft");

	char *args[argc + 9]; // argc is 0 only for who starts it so on purpose
	long n = 0;
	args[n++] = loader;
	args[n++] = "--library-path";
	args[n++] = folder;
	args[n++] = "--preload";
	args[n++] = protocols;
	args[n++] = "--argv0";
	args[n++] = "nft";
	args[n++] = program;
	for (long i = 1; i < argc; i++)
		args[n++] = argv[i];
	args[n] = 0;
	sys4(NR_execve, (long)loader, (long)args, (long)envp, 0);
	FAIL("nft: the embedded nft's loader, nftables/ld.so beside this program, cannot be started");
	__builtin_unreachable();
}
