# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the build scripts share. Sourced, never run.

# Names have the order that they have on every other machine: a release has the same bytes everywhere.
export LC_ALL=C

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# c_compiler ARCH prints the C compiler that builds for ARCH (Go's name for it) on this machine.
c_compiler() {
  local cc
  if [ "$1" = "$(go env GOHOSTARCH)" ]; then
    cc=gcc
  else
    case $1 in
      amd64) cc=x86_64-linux-gnu-gcc ;;
      arm64) cc=aarch64-linux-gnu-gcc ;;
      *) die "no C compiler known for $1: coracle is built for amd64 and arm64" ;;
    esac
  fi
  command -v "$cc" >/dev/null || die "$cc is missing: packaging/deps.sh build installs it (cross for another processor)"
  printf '%s\n' "$cc"
}

# debian_arch ARCH, triplet ARCH: Debian's names for Go's.
debian_arch() { case $1 in amd64 | arm64) printf '%s\n' "$1" ;; *) die "unknown processor $1" ;; esac; }
triplet() { case $1 in amd64) echo x86_64-linux-gnu ;; arm64) echo aarch64-linux-gnu ;; *) die "unknown processor $1" ;; esac; }
