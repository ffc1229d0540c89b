#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds upstream's programs at the versions of the go.mod beside this file. Run through `make upstream`, which sets what
# is used here: GO.
#
#   build.sh OUT   programs into OUT, CNI plugins into OUT/cni
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")"
# shellcheck source=packaging/lib.sh
. ../../../packaging/lib.sh
GO=${GO:-go}
# The versions with which programs call themselves, and the same options as coracle's: less debug information.
kubernetes=$("$GO" list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${kubernetes#v1.}
version="-X k8s.io/component-base/version.gitVersion=$kubernetes -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"

# build CGO PROGRAM PACKAGE FLAG...: one program, which replaces the old one only when it is whole.
build() {
  local cgo=$1 program=$out/$2 package=$3
  shift 3
  CGO_ENABLED=$cgo "$GO" build "$@" -o "$program.new" "$package" ||
    die "upstream's $package does not build, so there is nothing to measure coracle beside. make build and make test need no such program"
  mv "$program.new" "$program"
}

pkg-config --exists libseccomp 2>/dev/null || die "libseccomp's headers or pkg-config are missing, which runc is built with: packaging/deps.sh build installs them (root)"
mkdir -p "$out/cni"
for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
  say "building upstream's $name $kubernetes"
  build 0 "$name" "k8s.io/kubernetes/cmd/$name" -ldflags "-s -w $version"
done
say "building upstream's etcd, containerd, runc and CNI plugins"
build 0 etcd go.etcd.io/etcd/server/v3 -ldflags '-s -w'
for name in containerd containerd-shim-runc-v2 ctr; do
  build 0 "$name" "github.com/containerd/containerd/v2/cmd/$name" -tags 'no_btrfs no_zfs no_devmapper' -ldflags '-s -w'
done
for plugin in ipam/host-local main/bridge main/loopback meta/portmap; do
  build 0 "cni/${plugin#*/}" "github.com/containernetworking/plugins/plugins/$plugin" -ldflags '-s -w'
done
build 1 runc github.com/opencontainers/runc -tags 'seccomp netgo osusergo' -ldflags '-s -w -extldflags "-static"'
