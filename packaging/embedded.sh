#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the programs embedded in coracle and packs them into internal/embedded/files/ARCH. Run through `make embedded`,
# which sets what is used here: GO, TAGS, TRIMPATH.
#
#   embedded.sh ARCH WORK
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
arch=$1 work=$2
GO=${GO:-go} stage=$work/stage
pause_image=$(sed -n 's/^const PauseImage = "\(.*\)"$/\1/p' internal/embedded/embedded.go)
mkdir -p "$stage"
exec 9> "$work/../lock"
flock 9 # two builds at once would write the same files
rm -f "$stage"/{coracle-tools,kubectl,ctr,helm} # of an older version's build

# go_program NAME PACKAGE: one of our static programs.
go_program() {
  [ -d "$2" ] || die "$2 is missing: this tree has no sources for $1"
  CGO_ENABLED=0 GOOS=linux GOARCH=$arch "$GO" build -buildvcs=false ${TRIMPATH:+-trimpath} -tags "$TAGS" -ldflags '-s -w' -o "$stage/$1" "./$2"
}

# patched_runc: runc's sources with runc.patch in $work/runc, and $work/runc.mod, a go.mod that names them.
patched_runc() {
  local folder=$work/runc
  rm -rf "$folder"
  "$GO" mod download github.com/opencontainers/runc
  cp -r "$("$GO" list -m -f '{{.Dir}}' github.com/opencontainers/runc)" "$folder"
  chmod -R u+w "$folder"
  # No repository around the folder, to whose top the patch would be applied.
  GIT_CEILING_DIRECTORIES=$(realpath "$work") git -C "$folder" apply "$PWD/packaging/runc.patch"
  cp go.mod "$folder.mod"
  cp go.sum "$folder.sum"
  # Without Go's look, at each start, through the list of all mounts for a limit of runc's own control group.
  "$GO" mod edit "-replace=github.com/opencontainers/runc=./$folder" -godebug=containermaxprocs=0 "$folder.mod"
}

# build_runc: runc speaks to libseccomp, a C library, and enters namespaces in C: the one program with cgo. Without the
# tag urfave_cli_no_docs, a package that writes manuals takes 5 of the 35 ms of processor time of a run.
build_runc() {
  local cc root lib flags=(-buildvcs=false -tags 'seccomp netgo osusergo urfave_cli_no_docs' -ldflags "-s -w ${TRIMPATH:+-buildid= }-extldflags \"-static\"")
  cc=$(c_compiler "$arch")
  if [ "$arch" != "$(go env GOHOSTARCH)" ]; then
    packaging/debs.sh --locked "$arch" "$work/seccomp" libseccomp-dev
    root=$(realpath "$work/seccomp/root")
    lib=$root/usr/lib/$(triplet "$arch")
    export PKG_CONFIG_LIBDIR="$lib/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$root"
    # pkg-config leaves out what it takes for the system's own folders, which these are not.
    export CGO_CFLAGS="-O2 -g -I$root/usr/include" CGO_LDFLAGS="-L$lib"
  fi
  patched_runc
  CC=$cc CGO_ENABLED=1 GOOS=linux GOARCH=$arch "$GO" build "-modfile=$work/runc.mod" "${flags[@]}" ${TRIMPATH:+-trimpath} -o "$stage/runc" github.com/opencontainers/runc
}

# c_packages writes which of Debian's packages runc's C libraries ($work/c-libraries) and the compiler ($work/c-tools) are
# from, in the form of debs.sh: what others have to have for the same bytes.
c_packages() {
  local cc name file
  cc=$(c_compiler "$arch")
  for name in libc.a libgcc.a libseccomp.a; do
    file=$("$cc" "-print-file-name=$name")
    if [ "$file" != "$name" ]; then owner "$file"; else grep '^libseccomp-dev ' "$work/seccomp/packages"; fi
  done | sort -u >"$work/c-libraries"
  for file in "$(command -v "$cc")" "$("$cc" -print-prog-name=cc1)" "$("$cc" -print-prog-name=as)" "$("$cc" -print-prog-name=ld)"; do
    owner "$(command -v "$file")"
  done | sort -u >"$work/c-tools"
}

# owner FILE prints the installed package that FILE is of.
owner() {
  local package
  package=$(dpkg-query --search "$(realpath "$1")" | sed 's/: .*//')
  # shellcheck disable=SC2016 # the format is dpkg-query's own
  dpkg-query --show --showformat '${Package} ${Version} source ${source:Package} ${source:Version}\n' "$package"
}

# build_small FILE SOURCE: a program without a C library.
build_small() {
  rm -f "$1" # it may be a link
  "$(c_compiler "$arch")" -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -fno-pie -no-pie \
    -fno-tree-loop-distribute-patterns -Wall -Wextra -Werror -Wl,--build-id=none -Wl,-z,norelro -Wl,-z,noseparate-code \
    -Wl,-z,max-page-size=65536 -s -o "$1" "$2"
}

# build_shared FILE SOURCE: a shared library without a C library.
build_shared() {
  "$(c_compiler "$arch")" -Os -shared -fPIC -nostdlib -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables \
    -Wall -Wextra -Werror -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,max-page-size=65536 -s -o "$1" "$2"
}

# Said before minutes of compiling. For the other processor build_runc fetches its own.
if [ "$arch" = "$("$GO" env GOHOSTARCH)" ] && ! pkg-config --exists libseccomp 2>/dev/null; then
  die "libseccomp's headers or pkg-config are missing, which runc is built with: packaging/deps.sh build installs them (root)"
fi

packaging/console.sh "$work/.."

say "building the programs embedded in coracle for $arch: runc, shim, ingress proxy and others"
go_program coracle-helper cmd/coracle-helper
go_program coracle-ingress cmd/coracle-ingress
[ -z "${INGRESS_MARK:-}" ] || [ -n "${TRIMPATH:-}" ] || printf %s "$INGRESS_MARK" >>"$stage/coracle-ingress" # another version for tests of upgrades
(build_runc)
[ -z "${TRIMPATH:-}" ] || c_packages
build_small "$work/pause" cmd/pause/pause.c
build_small "$stage/nft" cmd/nft/nft.c
packaging/nft-bundle.sh "$arch" "$work/nft" "$stage/nftables"
build_shared "$stage/nftables/protocols.so" cmd/nft/protocols.c
for link in containerd-shim-runc-v2 coracle-cni; do ln -sfn coracle-helper "$stage/$link"; done

"$GO" run -buildvcs=false ./packaging/pack -stage "$stage" -out "internal/embedded/files/$arch" -pause "$work/pause" \
  -pause-image "$pause_image" -arch "$arch"
