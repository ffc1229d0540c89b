// SPDX-License-Identifier: Apache-2.0
//
// Preloaded into a User-Mode Linux. Its kernel keeps 2,696 bytes of a process's extended registers, which end before those of AMX. The
// machine's kernel takes them from a debugger only whole (xstateregs_set in arch/x86/kernel/fpu/regset.c), so on a processor that has AMX
// no guest could go on. This ptrace fills up what it is given with registers that nothing has used.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { header = 512 }; // where the bits are of what was used: see "XSAVE area" in Intel's manual

static _Alignas(64) char whole[64 << 10]; // one thread of the guest's kernel traces
static size_t size;                       // what the machine's kernel takes, once it is known

static long set(pid_t pid, struct iovec *given) {
  if (size == 0) {
    struct iovec all = {whole, sizeof whole};
    long err = syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all);
    if (err < 0) return err;
    size = all.iov_len;
  }
  if (given->iov_len >= size || given->iov_len < header + sizeof(uint64_t))
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, given);
  memcpy(whole, given->iov_base, given->iov_len);
  memset(whole + given->iov_len, 0, size - given->iov_len);
  uint64_t used;
  memcpy(&used, whole + header, sizeof used);
  used &= 0x2ff; // up to AVX-512, and the protection keys
  memcpy(whole + header, &used, sizeof used);
  struct iovec all = {whole, size};
  return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &all);
}

long ptrace(enum __ptrace_request request, ...) {
  va_list rest;
  va_start(rest, request);
  pid_t pid = va_arg(rest, pid_t);
  void *addr = va_arg(rest, void *);
  void *data = va_arg(rest, void *);
  va_end(rest);
  if (request == PTRACE_SETREGSET && (long)addr == NT_X86_XSTATE) return set(pid, data);
  if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA && request != PTRACE_PEEKUSER)
    return syscall(SYS_ptrace, request, pid, addr, data);
  long word; // the system call stores it, the library returns it
  long err = syscall(SYS_ptrace, request, pid, addr, &word);
  if (err < 0) return err;
  errno = 0;
  return word;
}
