#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs coracle on this machine, starts it as a service, and waits until its node is Ready.
#
#   sudo ./install.sh [server] [flags of coracle server]
#
# In a clone of the repository it builds coracle first. Beside a release (coracle-linux-amd64.xz or
# coracle-linux-arm64.xz, or either unpacked, or coracle, with sha256sums.txt) it installs that. Run again, it upgrades:
# the new version is on trial, and the one before runs again by itself if it does not work (docs/upgrade.md). The service
# is restarted only when something changed; pods keep running. Without arguments a second run keeps those of the first.
# coracle-uninstall takes it all away. docs/install.md says more.
#
# Environment:
#   INSTALL_CORACLE_EXEC         arguments of coracle, instead of this script's: "server --tls-san example.org"
#   INSTALL_CORACLE_BINARY       install this file, also one packed by xz; sha256sums.txt has to lie beside it, or:
#   INSTALL_CORACLE_SHA256       the hash that the file has to have, or "skip"
#   INSTALL_CORACLE_BUNDLE       install the program of this bundle (docs/bundle.md), and take what else is in it
#   INSTALL_CORACLE_BUNDLE_KEY   a public key of minisign that is trusted for bundles from now on
#   INSTALL_CORACLE_BIN_DIR      where to put programs (default /usr/local/bin)
#   INSTALL_CORACLE_SERVICE      systemd, openrc or none (default: what runs here)
#   INSTALL_CORACLE_SYMLINK      skip: make no kubectl and ctr links; force: replace what has that name there
#   INSTALL_CORACLE_SKIP_START   set: install only
#   INSTALL_CORACLE_SKIP_TRIAL   set: switch to the new version without a trial
#   INSTALL_CORACLE_SKIP_CHECK   set: start although "coracle check" found something missing
#   INSTALL_CORACLE_TIMEOUT      seconds to wait for the node (default 300)
#   CORACLE_..., HTTP_PROXY, HTTPS_PROXY, NO_PROXY   settings for coracle, kept in /etc/coracle/service.env
# Tokens and keys for S3 that stand among the arguments are kept there too, where root alone reads them.
set -eu
umask 022

etc=/etc/coracle
env_file=$etc/service.env
args_file=$etc/service.args
unit_file=/etc/systemd/system/coracle.service
pods_unit_file=/etc/systemd/system/coracle-pods.service
openrc_file=/etc/init.d/coracle
log_file=/var/log/coracle.log
lock_file=/run/coracle-install.lock
bin_dir=${INSTALL_CORACLE_BIN_DIR:-/usr/local/bin}
program=$bin_dir/coracle
timeout=${INSTALL_CORACLE_TIMEOUT:-300}
here=$(cd "$(dirname "$0")" && pwd)

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# ---- what machine is this ----

find_machine() {
  [ "$(uname -s)" = Linux ] || die "coracle runs on Linux only; this is $(uname -s)"
  case $(uname -m) in
    x86_64 | amd64) arch=amd64 ;;
    aarch64 | arm64) arch=arm64 ;;
    *) die "there is no coracle for this machine's processor ($(uname -m)); there is one for x86_64 and aarch64" ;;
  esac
  [ "$(id -u)" = 0 ] || die "installing takes root: sudo $0"
  refuse_k3s
  service=${INSTALL_CORACLE_SERVICE:-}
  if [ -z "$service" ]; then
    if [ -d /run/systemd/system ] && command -v systemctl >/dev/null; then
      service=systemd
    elif command -v openrc-run >/dev/null && command -v rc-update >/dev/null; then
      service=openrc
    else
      service=none
    fi
  fi
  case $service in systemd | openrc | none) ;; *) die "INSTALL_CORACLE_SERVICE is \"$service\"; it may be systemd, openrc or none" ;; esac
  case $bin_dir in /*) ;; *) die "INSTALL_CORACLE_BIN_DIR has to be an absolute path, not \"$bin_dir\"" ;; esac
}

# refuse_k3s refuses variables of k3s, which would have no effect.
refuse_k3s() {
  found=
  for name in $(env | sed -n 's/^\(K3S_[A-Z0-9_]*\|INSTALL_K3S_[A-Z0-9_]*\)=..*/\1/p'); do
    case $name in
      K3S_CONFIG_FILE | K3S_DEBUG | K3S_DATA_DIR | K3S_URL | K3S_TOKEN | K3S_TOKEN_FILE | K3S_AGENT_TOKEN | K3S_AGENT_TOKEN_FILE | \
        K3S_NODE_NAME | K3S_RESOLV_CONF | K3S_LB_SERVER_PORT) is="it is called CORACLE_${name#K3S_} here" ;;
      K3S_KUBECONFIG_OUTPUT) is="it is called CORACLE_WRITE_KUBECONFIG here" ;;
      K3S_KUBECONFIG_*) is="it is called CORACLE_WRITE_KUBECONFIG_${name#K3S_KUBECONFIG_} here" ;;
      INSTALL_K3S_EXEC | INSTALL_K3S_BIN_DIR | INSTALL_K3S_SYMLINK | INSTALL_K3S_SKIP_START)
        is="it is called INSTALL_CORACLE_${name#INSTALL_K3S_} here" ;;
      *) is="coracle has no such setting: docs/coming-from-k3s.md says why" ;;
    esac
    found="$found
  $name: $is"
  done
  [ -z "$found" ] || die "variables of k3s are set, and coracle does not read them. Nothing was installed. Unset them:$found"
}

# ---- the binary ----

# trust PATH [ADVICE] refuses a program, or a folder whose content another user than root and the user who called sudo may change: what lies there runs as root.
trust() {
  folder=$(readlink -f "$1")
  advice=${2:-Copy it to a folder that root or you alone may write, such as one in your home, and start it there}
  at=$folder
  while :; do
    # shellcheck disable=SC2046 # three words
    set -- $(stat -c '%u %g %a' "$at")
    user=$1 group=$2 mode=000$3
    others=${mode#"${mode%?}"} mode=${mode%?}
    members=${mode#"${mode%?}"} mode=${mode%??}
    special=${mode#"${mode%?}"}
    who=
    case $members in [2367]) case $group in 0 | "${SUDO_GID:-0}") ;; *) who="group $group" ;; esac ;; esac
    case $others in [2367]) who="every user" ;; esac
    case $special in [1357]) [ "$at" = "$folder" ] || who= ;; esac # below a folder such as /tmp no user moves another's files
    case $user in 0 | "${SUDO_UID:-0}") ;; *) who="user $user" ;; esac
    [ -z "$who" ] || die "$who of this machine may change what lies in $folder ($at), and this would run it as root. Nothing was installed.
$advice"
    [ "$at" != / ] || return 0
    at=$(dirname "$at")
  done
}

# trust_all FOLDER is trust for all that lies in a folder.
trust_all() {
  found=$(find "$1" ! -type l \( -perm -002 -o -perm -020 ! -group 0 ! -group "${SUDO_GID:-0}" -o ! -user 0 ! -user "${SUDO_UID:-0}" \) | head -n 1)
  trust "${found:-$1}"
}

# find_bundle makes $binary the program of a bundle for this processor. It lies where put writes. The program's digest is
# in the index, and the signatures are the index's. The index is read once: a stick may show something else later.
find_bundle() {
  [ -f "$INSTALL_CORACLE_BUNDLE" ] || die "INSTALL_CORACLE_BUNDLE names $INSTALL_CORACLE_BUNDLE, which is no file"
  bundle=$(readlink -f "$INSTALL_CORACLE_BUNDLE")
  trust "$bundle"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch" "$bin_dir/coracle.new" "$bin_dir/coracle.keys" "$lock_file"' EXIT
  tar -xOf "$bundle" index.json >"$scratch/index.json" 2>/dev/null || die "$bundle is no bundle, or is cut off. Nothing was installed"
  index=$(tr -d ' \n\t' <"$scratch/index.json")
  found=$(printf %s "$index" |
    sed -n "s/.*{\"architecture\":\"$arch\",\"file\":{\"digest\":\"sha256:\([0-9a-f]*\)\",\"size\":[0-9]*},\"packed\":{\"digest\":\"sha256:\([0-9a-f]*\)\".*/\1 \2/p")
  [ -n "$found" ] || die "$bundle has no program for this machine's processor ($arch). Nothing was installed"
  check_signatures
  mkdir -p "$bin_dir"
  tar -xOf "$bundle" "blobs/sha256/${found#* }" | gunzip >"$bin_dir/coracle.new" ||
    die "the program of $bundle could not be unpacked into $bin_dir; the line above says why. Nothing was installed"
  [ "$(digest_of "$bin_dir/coracle.new")" = "${found% *}" ] || die "$bundle is damaged: its program is not what its index says. Nothing was installed. Copy it again"
  chmod 755 "$bin_dir/coracle.new"
  binary=$bin_dir/coracle.new
}

# knows_bundles says whether the installed program can check bundles. It knows release keys, which a bundle's own
# program could only vouch for itself with.
knows_bundles() { "$bin_dir/coracle" bundle verify --help >/dev/null 2>&1; }

# check_signatures lets the installed program or minisign check, before anything of a bundle runs, that enough trusted
# keys have signed it.
check_signatures() {
  keys=$(sed -n 's/^[[:space:]]*\(RW[^[:space:]]*\)[[:space:]]*$/\1/p' "$etc/trusted-keys" 2>/dev/null) || :
  # shellcheck disable=SC2086 # several keys
  keys=$(printf '%s\n' $keys ${INSTALL_CORACLE_BUNDLE_KEY:-} | sort -u)
  need=$(sed -n 's/^[[:space:]]*threshold:[[:space:]]*\([0-9][0-9]*\)[[:space:]]*$/\1/p' "$etc/trusted-keys" 2>/dev/null | tail -n 1) || :
  if knows_bundles; then return; fi # verify_bundle asks it
  if [ -z "$keys" ]; then
    say "no public key is known here, so the signatures of $bundle were not checked: INSTALL_CORACLE_BUNDLE_KEY can give one"
    return
  fi
  if ! command -v minisign >/dev/null; then
    say "minisign is not installed, so the program of $bundle runs before its signatures are checked, which it does itself"
    return
  fi
  signed=0
  signatures=$(tar -tf "$bundle" | sed -n '/^index\.json\.[0-9A-F]*\.minisig$/p')
  for key in $keys; do
    for name in $signatures; do
      tar -xOf "$bundle" "$name" >"$scratch/signature"
      if minisign -qVm "$scratch/index.json" -x "$scratch/signature" -P "$key" >/dev/null 2>&1; then
        signed=$((signed + 1))
        break
      fi
    done
  done
  [ "$signed" -ge "${need:-1}" ] || die "$bundle is not signed by enough keys that are trusted here ($etc/trusted-keys, INSTALL_CORACLE_BUNDLE_KEY):
$signed have signed it, and ${need:-1} have to. Nothing was installed"
}

# verify_bundle lets the program check all of the bundle, and keeps a key that was given. Without any key, what else is in
# the bundle is not taken.
verify_bundle() {
  cp "$etc/trusted-keys" "$bin_dir/coracle.keys" 2>/dev/null || : >"$bin_dir/coracle.keys"
  given=${INSTALL_CORACLE_BUNDLE_KEY:-}
  if [ -n "$given" ] && ! grep -qsxF "$given" "$bin_dir/coracle.keys"; then printf '%s\n' "$given" >>"$bin_dir/coracle.keys"; else given=; fi
  chmod 644 "$bin_dir/coracle.keys"
  judge=$binary
  if knows_bundles; then judge=$bin_dir/coracle; fi
  if ! said=$("$judge" bundle verify --trusted-keys "$bin_dir/coracle.keys" "$bundle" 2>&1); then
    case $said in
      *"no key is trusted here"*) content= ;;
      *) die "$said
Nothing was installed" ;;
    esac
  fi
  if [ -n "$given" ]; then
    mkdir -p "$etc"
    put "$bin_dir/coracle.keys" 644 "$etc/trusted-keys" || :
  fi
  rm -f "$bin_dir/coracle.keys"
}

# take_content imports the images, charts and manifests of the bundle.
take_content() {
  case ${index:-} in *'"manifests":[{'* | *'"charts":[{'*) ;; *) return 0 ;; esac
  if [ -z "$content" ]; then
    say "the images, charts and manifests of $bundle were not taken, because no key is trusted here. Put one into
$etc/trusted-keys, and: coracle bundle import $bundle"
    return
  fi
  at_place bundle import "$bundle" || die "coracle is installed, but what else is in $bundle was not taken; the lines above say why"
}

# find_binary sets $binary, building it when this is a clone.
find_binary() {
  trust "$here"
  if [ -n "${INSTALL_CORACLE_BUNDLE:-}" ]; then
    find_bundle
  elif [ -n "${INSTALL_CORACLE_BINARY:-}" ]; then
    binary=$INSTALL_CORACLE_BINARY
    [ -f "$binary" ] || die "INSTALL_CORACLE_BINARY names $binary, which is no file"
    trust "$(dirname "$binary")"
    trust "$binary"
    check_sum "$binary"
  elif grep -qs '^module github.com/coracle-k8s/coracle$' "$here/go.mod"; then
    trust_all "$here"
    build
    binary=$here/bin/coracle
  else
    for name in "coracle-linux-$arch" coracle "coracle-linux-$arch.xz"; do
      if [ -f "$here/$name" ]; then binary=$here/$name; break; fi
    done
    [ -n "${binary:-}" ] || die "there is neither coracle-linux-$arch.xz nor a clone of coracle's repository in $here, where this script is.
Put the release's file and sha256sums.txt beside it, or set INSTALL_CORACLE_BINARY"
    trust "$binary"
    check_sum "$binary"
  fi
  case $binary in *.xz) unpack ;; esac
  content=yes
  if [ -n "${bundle:-}" ]; then verify_bundle; fi
  version=$("$binary" version 2>/dev/null | sed -n 's/^coracle  *//p')
  [ -n "$version" ] || die "$binary does not run on this machine ($(uname -m)): is it the one for $arch, and complete?"
}

check_sum() {
  want=${INSTALL_CORACLE_SHA256:-}
  [ "$want" != skip ] || return 0
  sums=$(dirname "$1")/sha256sums.txt
  if [ -z "$want" ]; then
    [ -f "$sums" ] || die "cannot check $1: there is no sha256sums.txt beside it.
Get that file too, or set INSTALL_CORACLE_SHA256 to the hash that the binary should have (or to skip)"
    trust "$sums"
    want=$(awk -v name="$(basename "$1")" '$2 == name || $2 == "*" name {print $1}' "$sums")
    [ -n "$want" ] || die "$sums does not list $(basename "$1"): the two are not of the same release"
  fi
  have=$(sha256sum "$1" | cut -d ' ' -f 1)
  [ "$have" = "$want" ] || die "$1 is not what was released: its SHA-256 is $have, but should be $want. Nothing was installed. Get it again"
}

# unpack makes $binary the program that a file packed by xz holds. It lies where put writes, so that a card is written
# once, and not at all when that program is installed already.
unpack() {
  command -v xz >/dev/null || die "xz is missing, which unpacks $binary. Install it (Debian and Ubuntu: apt install xz-utils), or unpack the file elsewhere: xz -d $(basename "$binary")"
  if xz -dc "$binary" 2>/dev/null | cmp -s - "$bin_dir/coracle"; then binary=$bin_dir/coracle; return; fi
  mkdir -p "$bin_dir"
  trap 'rm -f "$bin_dir/coracle.new" "$lock_file"' EXIT
  xz -dc "$binary" >"$bin_dir/coracle.new" || die "$binary could not be unpacked into $bin_dir; the line above says why. Nothing was installed"
  chmod 755 "$bin_dir/coracle.new"
  binary=$bin_dir/coracle.new
}

# build runs as the user who called sudo, so that the clone stays theirs.
build() {
  say "building coracle from $here; on two cores and for the first time that takes about eight minutes"
  "$here/packaging/deps.sh" build console
  owner=$(stat -c %u "$here")
  if [ "$owner" != 0 ] && [ "$owner" = "${SUDO_UID:-}" ] && command -v runuser >/dev/null; then
    home=$(getent passwd "$owner" | cut -d : -f 6)
    runuser -u "$SUDO_USER" -- env HOME="$home" make --no-print-directory -C "$here" build
  else
    make --no-print-directory -C "$here" build
  fi
}

# put FILE MODE DEST copies a file in one step, also over a program that runs. It is false when DEST was the same already.
# A file that unpack wrote is moved: on one file system it is written once.
# What was written leaves the page cache. Linux keeps it there in blocks of up to 2 MB and maps them whole, so that a
# program that was just installed takes 40 MB more memory than one that is read from the disk (docs/adr/0057).
put() {
  if cmp -s "$1" "$3" && [ "$(stat -c %a "$3")" = "$2" ]; then return 1; fi
  # In a condition, where this is called, no failure ends the script by itself.
  if ! { mkdir -p "$(dirname "$3")" && copy "$1" "$3.new" && chmod "$2" "$3.new" && sync "$3.new"; }; then fail_put "$3"; fi
  dd if="$3.new" iflag=nocache count=0 2>/dev/null || : # BusyBox' dd has no nocache
  mv -f "$3.new" "$3" || fail_put "$3"
  sync "$(dirname "$3")"
}

copy() { case $1 in "$bin_dir/coracle.new") mv -f "$1" "$2" ;; *) cp "$1" "$2" ;; esac; }

fail_put() {
  rm -f "$1.new"
  die "$1 could not be written; the line above says why. What was there before was not changed"
}

# put_text MODE DEST is put with the text from standard input.
put_text() {
  umask 077
  text=$(mktemp)
  cat >"$text"
  umask 022
  if put "$text" "$1" "$2"; then rm -f "$text"; return 0; else rm -f "$text"; return 1; fi
}

# ---- versions of the program ----
#
# DATA-DIR/versions/DIGEST/coracle is a program, named by its SHA-256. The links "current" and "previous" name two of
# these folders, and "trial" one while it is on trial; coracle-start reads them. docs/adr/0182 has the order of all steps.

# find_versions sets $versions, the folder that the settings of the service place.
find_versions() {
  versions=$(at_place upgrade folder) || die "coracle $version does not say where its versions are.
If it is older than this script: install it with the install.sh of its own release"
  if [ -n "${trial:-}" ] && [ "$(readlink "$bin_dir/coracle")" != "$versions/current/coracle" ]; then
    die "this run has another version of coracle, and the data directory has changed: $versions is where versions would lie.
Nothing was changed. Run install.sh of the installed version first, which moves it, or set the data directory as it was"
  fi
  if [ ! -d "$versions" ]; then
    mkdir -p "$versions"
    sync "$(dirname "$versions")" "$(dirname "$(dirname "$versions")")"
  fi
  trust "$versions" "That is the data directory: give it to root (chown root, chmod go-w), or choose another with --data-dir"
  at=$versions
  while [ "$at" != / ]; do
    case $(stat -c %a "$at") in *[1357]) ;; *) warn "only root can use coracle and kubectl here, since $at is closed for other users (chmod o+x $at opens the way)" ;; esac
    at=$(dirname "$at")
  done
}

digest_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

# stage FILE keeps a program among the versions, and sets $digest to its name. No link names it yet.
stage() {
  digest=$(digest_of "$1")
  put "$1" 755 "$versions/$digest/coracle" || true # that it was the same is fine
  sync "$versions"
}

# link NAME DIGEST makes a link name a version, in one step.
link() {
  ln -sfn "$2" "$versions/$1.new"
  mv -fT "$versions/$1.new" "$versions/$1"
  sync "$versions"
}

# prune [DIGEST] removes the versions that no link names, except one.
prune() {
  find "$versions" -mindepth 1 -maxdepth 1 -type d ! -name "$(readlink "$versions/current")" \
    ! -name "$(readlink "$versions/previous")" ! -name "$(readlink "$versions/trial")" ! -name "${1:-}" -exec rm -rf {} +
}

# unreported prints the version that was refused, until the version that runs has reported that and needs nothing of it.
unreported() {
  if ! grep -qs '^reported' "$versions/refused"; then cut -d ' ' -f 1 "$versions/refused" 2>/dev/null || :; fi
}

# keep_counter writes the counter of the bundle beside the program that was staged, if trusted keys have signed it: older
# bundles are not taken from then on. What an upgrade from a bundle has written there says more.
keep_counter() {
  if [ -z "${bundle:-}" ] || [ -z "$content" ] || [ -f "$versions/$digest/accepted.json" ]; then return 0; fi
  counter=$(printf %s "$index" | sed -n 's/.*"coracle":{"format":[0-9]*,"name":"[^"]*",\("counter":[0-9]*\).*/{\1}/p')
  [ -n "$counter" ] || return 0
  echo "$counter" | put_text 644 "$versions/$digest/accepted.json" || true # it was not there
}

# switch makes $binary the current version without a trial, and the one that was installed before the previous one. That
# may be a plain file, which an earlier installer put where the link is now. After each step a whole version runs at
# the next boot: what is installed, until the link "current" or the unit changes.
switch() {
  before=$(readlink "$versions/current") || before=
  if [ -L "$versions/trial" ]; then # one that did not end
    rm -f "$versions/trial"
    sync "$versions"
  fi
  if [ -x "$versions/current/coracle" ] && [ "$before" != "$(digest_of "$binary")" ]; then # room for two programs is enough
    rm -f "$versions/previous"
    sync "$versions"
    prune
  fi
  installed=$(readlink -f "$bin_dir/coracle") || installed=
  case $installed in
    "$(readlink -f "$versions")"/*) ;;
    *) if [ -x "$installed" ]; then stage "$installed"; before=$digest; fi ;;
  esac
  stage "$binary"
  keep_counter
  binary=$versions/$digest/coracle
  if ! "$binary" version >/dev/null 2>&1; then
    prune
    die "programs do not run from $versions: is its file system mounted with noexec? What was installed before goes on.
Mount it without, or choose another data directory with --data-dir"
  fi
  if [ -n "$before" ] && [ "$before" != "$digest" ]; then link previous "$before"; fi
  link current "$digest"
}

# link_program makes the program's name in $bin_dir a link to the current version. Versions below another data directory,
# which it named before, are removed.
link_program() {
  target=$versions/current/coracle
  was=$(readlink "$bin_dir/coracle") || was=
  if [ "$was" = "$target" ]; then return; fi
  ln -sfn "$target" "$bin_dir/coracle.link"
  mv -fT "$bin_dir/coracle.link" "$bin_dir/coracle"
  sync "$bin_dir"
  case $was in */versions/current/coracle) ;; *) return ;; esac
  was=${was%/current/coracle}
  if [ "$(readlink -f "$was")" != "$(readlink -f "$versions")" ]; then rm -rf "$was"; fi # the same by another path stays
}

# restart_command prints the command by which the program restarts the service.
restart_command() {
  case $service in
    systemd) echo "systemctl restart --no-block coracle" ;;
    openrc) echo "rc-service coracle --quiet restart" ;;
    none) echo "$(quote_shell "$bin_dir/coracle-service") restart" ;;
  esac
}

# put_starter writes what the service starts. A trial begins with the present one.
put_starter() {
  text=$("$binary" upgrade starter) || die "coracle $version has no starter"
  if printf '%s\n' "$text" | put_text 755 "$bin_dir/coracle-start"; then changed=yes; fi
}

install_links() {
  [ "${INSTALL_CORACLE_SYMLINK:-}" != skip ] || return 0
  for name in kubectl ctr; do
    link=$bin_dir/$name
    if [ "$(readlink "$link" 2>/dev/null)" = coracle ]; then continue; fi
    if [ "${INSTALL_CORACLE_SYMLINK:-}" != force ]; then
      other=$(command -v "$name" 2>/dev/null) || other=
      if [ -e "$link" ] || [ -L "$link" ]; then other=$link; fi
      if [ -n "$other" ]; then
        say "leaving $other as it is; coracle's own is: coracle $name"
        continue
      fi
    fi
    ln -sfn coracle "$link"
  done
}

# ---- settings ----

# save_settings keeps the arguments and the environment for the service. Without new ones the old ones stay.
save_settings() {
  mkdir -p "$etc"
  if [ $# -eq 0 ] && [ -n "${INSTALL_CORACLE_EXEC:-}" ]; then
    eval "set -- $INSTALL_CORACLE_EXEC"
  fi
  if [ $# -gt 0 ] || [ ! -f "$args_file" ]; then
    case ${1:-} in
      server | agent) ;;
      '' | -*) set -- "$(role)" "$@" ;;
      *) die "coracle runs as a server or an agent, not as \"$1\"" ;;
    esac
    for arg in "$@"; do
      case $arg in *"
"*) die "an argument may not hold a line break" ;; esac
    done
    save_arguments "$@"
  else
    each_arg save_arguments # an earlier version left secrets in it
    say "keeping the arguments of the last installation: $(paste -sd ' ' "$args_file")"
  fi
  names=$(env | sed -n '/^CORACLE_VERSIONS=/d; s/^\(CORACLE_[A-Za-z0-9_]*\)=.*/\1/p; s/^\(\(HTTPS\{0,1\}\|NO\|ALL\)_PROXY\)=.*/\1/p; s/^\(\(https\{0,1\}\|no\|all\)_proxy\)=.*/\1/p' | sort -u)
  if print_environment "$names" | put_text 600 "$env_file"; then changed=yes; fi
}

# new_settings ARGUMENTS... says whether save_settings would change something. An earlier version left secrets among the
# arguments; that these are moved is no change.
new_settings() (
  if grep -qE '^(-t|--(token|agent-token|snapshot-s3-(access-key|secret-key|session-token))(=|$))' "$args_file"; then return 1; fi
  put_text() { ! cmp -s - "$2"; }
  changed=
  save_settings "$@" >/dev/null 2>&1
  [ -n "$changed" ]
)

# save_arguments keeps the arguments, but for secrets: unit files and the process list are for every user to read. These become variables.
# A file with a token takes the place of one that an earlier run kept.
save_arguments() {
  left=$# forgotten=
  while [ "$left" -gt 0 ]; do
    arg=$1 flag='' value=''
    shift
    left=$((left - 1))
    case $arg in
      --token | --agent-token | --snapshot-s3-access-key | --snapshot-s3-secret-key | --snapshot-s3-session-token | -t)
        [ "$left" -gt 0 ] || die "$arg needs a value"
        flag=$arg value=$1
        shift
        left=$((left - 1)) ;;
      --token=* | --agent-token=* | --snapshot-s3-access-key=* | --snapshot-s3-secret-key=* | --snapshot-s3-session-token=* | -t=*)
        flag=${arg%%=*} value=${arg#*=} ;;
      -t?*) flag=-t value=${arg#-t} ;;
      --token-file | --token-file=*) forgotten="$forgotten CORACLE_TOKEN"; set -- "$@" "$arg" ;;
      --agent-token-file | --agent-token-file=*) forgotten="$forgotten CORACLE_AGENT_TOKEN"; set -- "$@" "$arg" ;;
      *) set -- "$@" "$arg" ;;
    esac
    case $flag in
      '') ;;
      -t) export CORACLE_TOKEN="$value" ;;
      *) export "CORACLE_$(printf '%s' "${flag#--}" | tr 'a-z-' 'A-Z_')=$value" ;;
    esac
  done
  if printf '%s\n' "$@" | put_text 600 "$args_file"; then changed=yes; fi
}

# role is what a machine becomes whose arguments do not say it: who names a server to join wants a node.
role() { if [ -n "${CORACLE_URL:-}" ]; then echo agent; else echo server; fi; }

# print_environment NAMES prints these variables, after the ones that an earlier run kept and that are not set now.
print_environment() {
  if [ -f "$env_file" ]; then
    while IFS= read -r line; do
      case " $forgotten " in *" ${line%%=*} "*) continue ;; esac
      printf '%s\n' "$1" | grep -qx "${line%%=*}" || printf '%s\n' "$line"
    done <"$env_file"
  fi
  for name in $1; do
    value=
    eval "value=\$$name"
    # Double quotes mean the same to a shell and to systemd.
    printf '%s="%s"\n' "$name" "$(printf '%s' "$value" | sed 's/[\\"$`]/\\&/g')"
  done
}

# each_arg COMMAND runs COMMAND with the saved arguments behind it.
each_arg() {
  command=$1
  set --
  while IFS= read -r arg; do set -- "$@" "$arg"; done <"$args_file"
  "$command" "$@"
}

# coracle COMMAND... runs $program with the service's environment.
coracle() (
  set -a
  # shellcheck disable=SC1090
  . "$env_file"
  exec "$program" "$@"
)

# places prints the saved flags that say where things are, one to a line; other commands of coracle take those too.
places() {
  while [ $# -gt 0 ]; do
    case $1 in
      --data-dir=* | --run-dir=* | --config=*) printf '%s\n' "$1" ;;
      --data-dir | --run-dir | --config) printf '%s\n' "$1=${2:-}" ;;
      -d) printf '%s\n' "--data-dir=${2:-}" ;;
      -c) printf '%s\n' "--config=${2:-}" ;;
    esac
    shift
  done
}

# at_place COMMAND... is coracle COMMAND... with these flags.
at_place() { with_lines "$(each_arg places)" "$@"; }

# settings prints the saved flags of a server, one to a line, in the form that "coracle check" takes, where -o means
# --output. An agent's are not those of a server: of these it prints the places.
settings() {
  case ${1:-} in agent) places "$@"; return ;; esac
  [ $# -eq 0 ] || shift
  for arg in "$@"; do
    case $arg in
      -o) printf '%s\n' --write-kubeconfig ;;
      -o=*) printf '%s\n' "--write-kubeconfig=${arg#-o=}" ;;
      -o?*) printf '%s\n' "--write-kubeconfig=${arg#-o}" ;;
      *) printf '%s\n' "$arg" ;;
    esac
  done
}

# with_lines LINES COMMAND... is coracle COMMAND... with each line as an argument behind it.
with_lines() {
  lines=$1
  shift
  old_ifs=$IFS
  IFS='
'
  set -f # no file names in place of a *
  # shellcheck disable=SC2086 # one argument to a line
  set -- "$@" $lines
  set +f
  IFS=$old_ifs
  coracle "$@"
}

# ---- the service ----

quote_systemd() { for a in "$@"; do printf ' "%s"' "$(printf '%s' "$a" | sed 's/[\\"]/\\&/g; s/%/%%/g; s/\$/$$/g')"; done; }
quote_shell() { for a in "$@"; do printf " '%s'" "$(printf '%s' "$a" | sed "s/'/'\\\\''/g")"; done; }

# stop_pods QUOTE prints the command that stops the pods in order, with its arguments quoted by QUOTE.
stop_pods() {
  printf '%s node stop-pods' "$bin_dir/coracle"
  each_arg places | while IFS= read -r flag; do "$1" "$flag"; done
}

# write_pods_unit writes the unit that stops pods when the machine goes down, and at no other time. It neither requires
# coracle.service nor is a part of it: a restart or an upgrade of that one does not touch it.
write_pods_unit() {
  put_text 600 "$pods_unit_file" <<UNIT
[Unit]
Description=Coracle: stops the pods in order when the machine goes down
Documentation=https://github.com/coracle-k8s/coracle
# What comes before it is stopped after it: pods end while the API, the network and the file systems are there.
After=coracle.service network-online.target remote-fs.target local-fs.target
# The program that runs lies elsewhere, so it does not keep the file system of this link.
RequiresMountsFor="$(printf '%s' "$bin_dir" | sed 's/[\\"]/\\&/g; s/%/%%/g')"

[Service]
Type=oneshot
RemainAfterExit=yes
EnvironmentFile=-$env_file
ExecStart=/bin/true
ExecStop=$(stop_pods quote_systemd)
# The command ends by itself, at most 50 seconds after the time of --shutdown-grace-period.
TimeoutStopSec=infinity

[Install]
WantedBy=multi-user.target
UNIT
}

write_systemd() {
  write_pods_unit || true # a change of it restarts nothing
  put_text 600 "$unit_file" <<UNIT
[Unit]
Description=Coracle: Kubernetes in one process
Documentation=https://github.com/coracle-k8s/coracle
Wants=network-online.target
After=network-online.target remote-fs.target
# A version on trial that ends at once is started three times in a few seconds, and then the one before.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile=-$env_file
Environment="CORACLE_VERSIONS=$(printf '%s' "$versions" | sed 's/[\\"]/\\&/g; s/%/%%/g')"
ExecStart=$bin_dir/coracle-start$(each_arg quote_systemd)
# Pods are no children that end with the service: they outlive restarts and upgrades.
KillMode=process
# Their cgroups are coracle's to manage.
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
# A crash writes no memory to the disk: keys are in it. Pods may raise theirs.
LimitCORE=0:infinity
# A large store takes time to be read; systemd must not give up meanwhile.
TimeoutStartSec=0
TimeoutStopSec=90
Restart=always
RestartSec=2

[Install]
WantedBy=multi-user.target
UNIT
}

write_openrc() {
  put_text 700 "$openrc_file" <<SCRIPT
#!/sbin/openrc-run
# Written by coracle's install.sh.
name=coracle
description="Coracle: Kubernetes in one process"
supervisor=supervise-daemon
command="$bin_dir/coracle-start"
command_args="$(each_arg quote_shell | sed 's/[\\"$`]/\\&/g')"
output_log="$log_file"
error_log="$log_file"
respawn_delay=2
respawn_max=0
rc_ulimit="-n 1048576"
retry="TERM/90/KILL/5"

set -o allexport
[ ! -f "$env_file" ] || . "$env_file"
# The program bounds this file itself; what it cannot write there goes to its standard error. Variables go before the configuration.
grep -qs '^log:' "$etc/config.yaml" "$etc/config.yaml.d/"*.yaml || : "\${CORACLE_LOG:=$log_file}"
CORACLE_VERSIONS=$(quote_shell "$versions" | sed 's/^ //')
set +o allexport
ulimit -S -c 0 # a crash writes no memory to the disk: keys are in it

depend() {
	after network-online netmount localmount
	want cgroups
}

# Pods are stopped when the machine goes down, and only then.
stop_pre() {
	[ "\${RC_GOINGDOWN:-}" != YES ] || $(stop_pods quote_shell)
	return 0
}
SCRIPT
}

# write_none: without a service manager a shell script keeps coracle running. It does not come back after a reboot by
# itself; "coracle-service start" in the machine's own start-up script does that, and "coracle-service stop --pods" in
# the one that shuts it down stops the pods in order.
write_none() { service_script | put_text 755 "$bin_dir/coracle-service"; }

service_script() {
  cat <<HEAD
#!/bin/sh
# Written by coracle's install.sh for a machine without systemd and OpenRC.
#   coracle-service start|stop|restart|status
#   coracle-service stop --pods    when the machine goes down: stops the pods in order first
set -u
bin='$bin_dir/coracle-start'
versions=$(quote_shell "$versions" | sed 's/^ //')
etc='$etc'
args_file='$args_file'
env_file='$env_file'
log='$log_file'
pid_file=/run/coracle-service.pid
restarts_file=/run/coracle-service.restarts
stop_seconds=90
self='$bin_dir/coracle-service'
stop_pods() { $(stop_pods quote_shell); }
HEAD
  cat <<'BODY'

running() { # prints the supervisor's process id
  pid=$(cat "$pid_file" 2>/dev/null) && [ -n "$pid" ] && grep -aq coracle-service "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

# end ends a child, and kills one that has not ended after $stop_seconds, as systemd does.
end() {
  kill -TERM "$1" 2>/dev/null
  n=0
  while kill -0 "$1" 2>/dev/null; do
    n=$((n + 1))
    if [ $n -gt "$stop_seconds" ]; then
      echo "coracle-service: coracle has not ended within $stop_seconds seconds; it is killed"
      kill -KILL "$1"
      return
    fi
    sleep 1
  done
}

supervise() {
  echo $$ >"$pid_file"
  child='' stopping=''
  trap 'stopping=yes; [ -z "$child" ] || end "$child" &' TERM INT
  trap '' HUP
  set -a; [ ! -f "$env_file" ] || . "$env_file"
  # The program bounds this file itself; what it cannot write there goes to its standard error. Variables go before the configuration.
  grep -qs '^log:' "$etc/config.yaml" "$etc/config.yaml.d/"*.yaml || : "${CORACLE_LOG:=$log}"
  CORACLE_VERSIONS=$versions
  set +a
  set --
  while IFS= read -r arg; do set -- "$@" "$arg"; done <"$args_file"
  ulimit -n 1048576 2>/dev/null || ulimit -n "$(ulimit -H -n)"
  ulimit -S -c 0 # a crash writes no memory to the disk: keys are in it
  restarts=0
  while [ -z "$stopping" ]; do
    echo "$restarts" >"$restarts_file"
    if [ "$(stat -c %s "$log" 2>/dev/null || echo 0)" -gt 50000000 ]; then mv -f "$log" "$log.1"; fi
    "$bin" "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done # a signal ends wait early
    child=
    [ -n "$stopping" ] && break
    restarts=$((restarts + 1))
    echo "coracle-service: coracle ended with code $code; starting it again" >>"$log"
    sleep 2 & wait $! # so that a signal is heard at once
  done
  rm -f "$pid_file" "$restarts_file"
}

start() {
  if running >/dev/null; then echo "coracle runs already"; return; fi
  rm -f "$pid_file" "$restarts_file"
  setsid "$self" supervise >>"$log" 2>&1 </dev/null &
  n=0
  while [ $n -lt 150 ]; do # half a minute: a busy board takes seconds to start a shell
    if running >/dev/null; then return; fi
    n=$((n + 1))
    sleep 0.2
  done
  echo "error: coracle did not start within 30 seconds; see $log" >&2; exit 1
}

stop() {
  pid=$(running) || return 0
  kill -TERM "$pid" 2>/dev/null
  n=0
  while [ -d "/proc/$pid" ]; do
    n=$((n + 1))
    if [ $n -gt $((10 * stop_seconds + 100)) ]; then echo "error: coracle (supervised by process $pid) does not stop; see $log" >&2; exit 1; fi
    sleep 0.1
  done
}

case ${1:-} in
  start) start ;;
  stop)
    if [ "${2:-}" = --pods ]; then (set -a; [ ! -f "$env_file" ] || . "$env_file"; stop_pods); fi
    stop ;;
  restart) stop; start ;;
  status) if pid=$(running); then echo "running, supervised by process $pid; see also: coracle status"; else echo "not running"; exit 3; fi ;;
  supervise) supervise ;;
  *) echo "usage: coracle-service start|stop [--pods]|restart|status" >&2; exit 2 ;;
esac
BODY
}

service_running() {
  case $service in
    systemd) case $(systemctl show -p ActiveState --value coracle 2>/dev/null) in active | activating | reloading) true ;; *) false ;; esac ;;
    openrc) rc-service coracle status >/dev/null 2>&1 ;;
    none) "$bin_dir/coracle-service" status >/dev/null 2>&1 ;;
  esac
}

# restarts prints how often the service had to be started again since its start was requested.
restarts() {
  case $service in
    systemd) systemctl show -p NRestarts --value coracle 2>/dev/null || echo 0 ;;
    openrc) echo 0 ;;
    none) cat /run/coracle-service.restarts 2>/dev/null || echo 0 ;;
  esac
}

start_service() {
  case $service in
    systemd) # stopped for sure first: the old process would answer for the new one
      systemctl stop coracle
      systemctl start --no-block coracle ;;
    openrc) rc-service coracle --quiet restart ;;
    none) "$bin_dir/coracle-service" restart ;;
  esac
}

log_tail() {
  case $service in
    systemd) journalctl -u coracle -n 30 --no-pager -o cat || true ;;
    *) tail -n 30 "$log_file" || true ;;
  esac
}

log_command() { case $service in systemd) echo "journalctl -u coracle" ;; *) echo "less $log_file" ;; esac; }

# ---- taking it away again ----

uninstall_script() {
  cat <<HEAD
#!/bin/sh
# Written by coracle's install.sh. Removes coracle from this machine with everything it made: pods, their network, data.
# A machine that joined a cluster leaves it first: its pods are evicted, its node is deleted, a server gives up its vote.
#   coracle-uninstall [--keep-data]    with it the cluster's data and its settings stay for a later installation, and the
#                                      machine stays in its cluster
#   coracle-uninstall --force          also when the machine is a server that could not leave its cluster
# Exit codes: 0 coracle is gone; 3 coracle is gone, but folders stay that are not its own, named in the last lines; 1 it
# stopped before the programs, because something could not be removed; 2 wrong arguments.
set -u
bin_dir='$bin_dir'
versions=$(quote_shell "$versions" | sed 's/^ //')
etc='$etc'
env_file='$env_file'
args_file='$args_file'
unit_file='$unit_file'
pods_unit_file='$pods_unit_file'
openrc_file='$openrc_file'
log_file='$log_file'
HEAD
  cat <<'BODY'

keep= kept= force=
for arg in "$@"; do
  case $arg in
    --keep-data) keep=yes ;;
    --force) force=yes ;;
    *) echo "usage: coracle-uninstall [--keep-data | --force]" >&2; exit 2 ;;
  esac
done
[ "$(id -u)" = 0 ] || { echo "error: uninstalling takes root: sudo coracle-uninstall" >&2; exit 1; }

set --
if [ -f "$args_file" ]; then
  while IFS= read -r arg; do case $arg in server | agent) ;; *) set -- "$@" "$arg" ;; esac; done <"$args_file"
fi
if [ -z "$keep" ] && [ -x "$bin_dir/coracle" ]; then
  echo "leaving the cluster, if it has other machines: pods of this one have up to a minute to end"
  # A user who interrupts the leaving wants nothing removed; not every shell ends by itself then.
  trap 'exit 130' INT
  trap 'exit 143' TERM
  (set -a; [ ! -f "$env_file" ] || . "$env_file"; exec "$bin_dir/coracle" leave "$@")
  # A cluster that a node cannot reach does not keep it: what is left there, and how to remove it, was said. A server's data may be needed.
  if [ $? = 3 ] && [ -z "$force" ]; then
    echo "error: this machine is still one of the cluster's servers, for the reason above. Nothing was removed: see to it and run coracle-uninstall again." >&2
    echo "  If the cluster is not needed any more, or goes on without this server: coracle-uninstall --force" >&2
    exit 1
  fi
  trap - INT TERM
fi

echo "stopping coracle"
if [ -f "$pods_unit_file" ]; then # without its file systemd has nothing to run when it ends
  systemctl disable --quiet coracle-pods 2>/dev/null
  rm -f "$pods_unit_file"
  systemctl daemon-reload
  systemctl stop coracle-pods 2>/dev/null
fi
if [ -f "$unit_file" ]; then
  systemctl disable --quiet coracle 2>/dev/null
  systemctl stop coracle || exit 1
fi
if [ -f "$openrc_file" ]; then
  rc-update --quiet del coracle default 2>/dev/null
  rc-service --quiet --ifstarted coracle stop || exit 1
fi
if [ -x "$bin_dir/coracle-service" ]; then "$bin_dir/coracle-service" stop || exit 1; fi

if [ -x "$bin_dir/coracle" ]; then
  [ -n "$keep" ] || set -- "$@" --remove-data
  kept=$(set -a; [ ! -f "$env_file" ] || . "$env_file"; exec "$bin_dir/coracle" cleanup "$@")
  case $? in
    0 | 3) ;; # 3: all that is coracle's own is gone, and $kept names the rest
    *)
      [ -z "$kept" ] || printf '%s\n' "$kept"
      echo "error: the messages above say what is left. Nothing else was removed: see to it and run coracle-uninstall again" >&2
      exit 1 ;;
  esac
else
  echo "warning: $bin_dir/coracle is gone, so pods that it started may still run. Install it again and run coracle-uninstall to remove them" >&2
fi

echo "removing programs and settings"
if [ -f "$unit_file" ]; then
  rm -f "$unit_file"
  systemctl daemon-reload
  systemctl reset-failed coracle 2>/dev/null
fi
rm -f "$openrc_file" "$log_file" "$log_file.1" /run/coracle-service.pid /run/coracle-service.restarts \
  /run/coracle-install.lock
for name in kubectl ctr; do
  if [ "$(readlink "$bin_dir/$name" 2>/dev/null)" = coracle ]; then rm -f "$bin_dir/$name"; fi
done
[ -n "$keep" ] || rm -rf "$etc"
rm -rf "$versions"
[ -n "$keep" ] || rmdir "$(dirname "$versions")" 2>/dev/null # where something is mounted, it stays
rm -f "$bin_dir/coracle" "$bin_dir/coracle-start" "$bin_dir/coracle-service" "$bin_dir/coracle-uninstall" # this script last, so that it can be run again
if [ -n "$keep" ]; then echo "coracle is gone; its data and settings stay"; else echo "coracle is gone"; fi
[ -n "$kept" ] || exit 0
printf '%s\n' "$kept"
exit 3
BODY
}

# ---- waiting ----

progress_line=
progress() { # progress TEXT: shown once, or kept up to date on a terminal
  if [ -t 1 ]; then
    printf '\r\033[K%s (%s s)' "$1" "$elapsed"
  elif [ "$1" != "$progress_line" ]; then
    say "$1"
  fi
  progress_line=$1
}

fail_wait() {
  [ ! -t 1 ] || printf '\n'
  say "--- the last lines of its log ---" >&2
  log_tail >&2
  why=
  if [ -n "${state:-}" ] && [ "$state" != True ]; then
    why=$(coracle kubectl --kubeconfig "$kubeconfig" get node "$node" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].message}' 2>/dev/null) || true
  fi
  [ -z "$why" ] || say "node $node says why it is not Ready: $why" >&2
  die "$1
The service stays installed; what it does: sudo coracle status, and its log: $(log_command)"
}

# wait_ready follows the service until this machine's node is Ready, or the API answers where there is to be no node.
wait_ready() {
  begin=$(date +%s)
  while :; do
    elapsed=$(($(date +%s) - begin))
    if [ "$(restarts)" -ge 3 ]; then
      said=$(log_tail 2>/dev/null | sed -n 's/^coracle: //p' | tail -n 1) # what it ended with
      fail_wait "coracle does not stay up: it ended and was started again $(restarts) times${said:+. It says:
$said}"
    fi
    [ "$elapsed" -lt "$timeout" ] || fail_wait "after $timeout seconds the state is still: $progress_line"
    status=$(at_place status -o json 2>/dev/null) || true
    node=$(printf '%s\n' "$status" | sed -n 's/^ *"node": "\(.*\)",*$/\1/p')
    data=$(printf '%s\n' "$status" | sed -n 's/^ *"dataDir": "\(.*\)",*$/\1/p')
    case $status in
      *'"running": true'*'"ready": '*)
        kubeconfig=$data/server/cred/admin.kubeconfig
        if grep -qx agent "$args_file" || grep -q '^--disable-agent' "$args_file"; then break; fi
        state=$(coracle kubectl --kubeconfig "$kubeconfig" get node "$node" --ignore-not-found \
          -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null) || state=
        case $state in
          True) break ;;
          '') progress "the API server answers; waiting for node $node to register" ;;
          *) progress "node $node has registered; waiting for it to be Ready" ;;
        esac ;;
      *'"running": true'*) progress "coracle runs; waiting for the API server" ;;
      *) progress "coracle is starting" ;;
    esac
    sleep 1
  done
  [ ! -t 1 ] || printf '\r\033[K'
  say "ready after $elapsed seconds: coracle $version, node ${node:-none}"
}

next_steps() {
  if grep -qx agent "$args_file"; then
    cat <<TXT

This machine is a node now. On a server, or wherever the cluster's kubeconfig is:
  kubectl get nodes   # it is among them
Here, as root or with sudo:
  coracle status      # how coracle itself is
TXT
    return
  fi
  kubectl="coracle kubectl"
  if [ "$(readlink "$bin_dir/kubectl" 2>/dev/null)" = coracle ]; then kubectl=kubectl; fi
  printf '\nNext, as root or with sudo:\n'
  printf '  %-39s # %s\n' "$kubectl get pods -A" 'what runs' "$kubectl run hello --image=nginx" 'a first pod' \
    'coracle status' 'how coracle itself is' 'coracle token print' 'the line that adds a machine'
  if [ "$kubectl" != kubectl ] && command -v kubectl >/dev/null; then
    file=$etc/coracle.yaml
    [ -f "$file" ] || file=${kubeconfig:-$file}
    printf '\n%s has no cluster yet. This one, as root:\n  export KUBECONFIG=%s\n' "This machine's own kubectl" "$file"
  fi
}

# ---- all of it ----

main() {
  find_machine
  lock "$lock_file" "another run of install.sh goes on. Nothing was changed: wait until it has ended, and run this again"
  trap 'rm -f "$lock_file"' EXIT # also when nothing is installed
  install_all "$@" 9>&- # what it starts does not keep the lock
}

# lock FILE WHY lets one process at a time go on; the others end with a reason. Without flock it does nothing.
lock() {
  command -v flock >/dev/null || return 0
  umask 077 # who may open the file may lock it
  exec 9>>"$1"
  umask 022
  flock -n 9 || die "$2"
  # The one that held it may have removed the file meanwhile.
  [ "$(stat -Lc %i /proc/self/fd/9)" = "$(stat -c %i "$1" 2>/dev/null)" ] || die "$2"
}

install_all() {
  find_binary
  trial='' changed='' running=''
  if service_running; then running=yes; fi
  if on_trial; then
    if new_settings "$@"; then refuse_both "$@"; fi
    trial=yes
  fi
  save_settings "$@"
  program=$binary
  find_versions
  if [ -z "$trial" ]; then
    lock "$versions/lock" "another upgrade of this machine is going on, so its versions were not changed: run this again once it has ended"
    if ! cmp -s "$binary" "$versions/current/coracle"; then
      switch
      changed=yes
    fi
  fi
  uninstall_script | put_text 755 "$bin_dir/coracle-uninstall" || true # that it was the same is fine
  if [ -z "$trial" ] || [ ! -x "$bin_dir/coracle-start" ]; then put_starter; fi
  restart_command | put_text 600 "$versions/restart" || true
  if "write_$service"; then changed=yes; fi
  link_program
  program=$bin_dir/coracle
  if [ -z "$trial" ]; then
    prune "$(unreported)"
    exec 9>&-
    say "installed coracle $version in $bin_dir"
    take_content
  fi
  install_links
  case $service in
    systemd) systemctl daemon-reload; systemctl enable --quiet coracle coracle-pods ;;
    openrc) rc-update --quiet add coracle default ;;
    none) say "there is no systemd and no OpenRC here: coracle runs in the background; coracle-service starts and stops it" ;;
  esac
  if [ -n "${INSTALL_CORACLE_SKIP_START:-}" ]; then
    say "not started, as asked"
    return
  fi
  if [ -n "$trial" ]; then
    try_version
  elif [ -z "$changed" ] && service_running; then
    say "nothing has changed: the service goes on"
  else
    if ! service_running && [ -z "${INSTALL_CORACLE_SKIP_CHECK:-}" ]; then
      found=$(with_lines "$(each_arg settings)" check 2>&1) || die "this machine lacks something that coracle needs:
$found
Everything is installed; see to it and run this again (INSTALL_CORACLE_SKIP_CHECK=1 starts all the same)"
    fi
    start_service
  fi
  [ "$service" != systemd ] || systemctl start --no-block coracle-pods
  wait_ready
  next_steps
}

# on_trial says whether the program is tried: it is another one than the version that runs, and coracle-start can go
# back to that. The version that runs is put back in its place where its file has other content than its name says.
on_trial() {
  [ -n "$running" ] && [ -L "$bin_dir/coracle" ] && ! cmp -s "$binary" "$bin_dir/coracle" &&
    [ -z "${INSTALL_CORACLE_SKIP_TRIAL:-}${INSTALL_CORACLE_SKIP_START:-}" ] || return
  case $(readlink -f "$bin_dir/coracle") in */"$(digest_of "$binary")"/coracle) return 1 ;; esac
}

refuse_both() {
  given=
  [ $# -eq 0 ] || given=$(quote_shell "$@")
  die "this run has another version of coracle and other settings (arguments or CORACLE_... and proxy variables), and a version
is tried with the settings of the one before. Nothing was changed. Run one after the other, the first without those variables:
  $0
  $0$given"
}

# try_version returns once the version is committed. The program says why it was refused.
try_version() {
  case ${bundle:-}$binary in "$bin_dir/coracle.new") stage "$binary"; binary=$versions/$digest/coracle ;; esac # not written twice
  program=$binary # it knows what it needs
  if [ -n "${bundle:-}" ] && knows_bundles; then program=$bin_dir/coracle; fi # it knows which keys are trusted
  at_place upgrade --here "${bundle:-$binary}" || die "coracle $version was not installed, for the reason above"
  program=$bin_dir/coracle # it has put its starter in place
}

main "$@"
