#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash
# The first process of an emulated machine with an arm64 processor: it does what somebody with a small board does on the first day, says on the console how each step went, and
# switches the machine off. What a step printed stands before its line.
export PATH=/bin:/usr/local/bin HOME=/root proxy='' KUBECONFIG=/etc/coracle/coracle.yaml
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp /root
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mount --make-rshared /
hostname board
echo 'root:x:0:0:root:/root:/bin/sh' > /etc/passwd # a kubelet does not start without it
echo 'root:x:0:' > /etc/group
echo '127.0.0.1 localhost' > /etc/hosts
echo 'nameserver 10.66.0.254' > /etc/resolv.conf
tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id
ulimit -n 65536
ip link set lo up
modprobe dummy
ip link add eth0 type dummy
ip address add 10.66.0.1/24 dev eth0
ip link set eth0 up
ip route add default via 10.66.0.254

kubectl() { coracle kubectl "$@"; }

# step NAME COMMAND... ends everything when the command fails.
step() {
  name=$1; shift
  "$@" > /tmp/said 2>&1
  code=$?
  if [ $code = 0 ]; then
    tail -n 20 /tmp/said
    echo "board: done: $name ($(cut -d. -f1 /proc/uptime) s after power on)"
    return
  fi
  tail -n 40 /tmp/said
  echo "board: failed with $code: $name"
  [ ! -e "$KUBECONFIG" ] || { kubectl get pods,pvc,jobs -A -o wide; kubectl get events -A; } 2>&1
  echo "board: the log's last lines"; tail -n 60 /var/log/coracle
  over 1
}
over() { echo "board: over: $1"; sync; poweroff -f; sleep 60; }

# wait_for COMMAND... until it ends well; the test limits the time of all.
wait_for() {
  until "$@"; do
    kill -0 "$(cat /run/coracle.pid)" || return 1
    sleep 2
  done
}
start() {
  # shellcheck disable=SC2086 # words
  coracle server --node-ip 10.66.0.1 $proxy >> /var/log/coracle 2>&1 &
  echo $! > /run/coracle.pid
}
stop() { kill -TERM "$(cat /run/coracle.pid)" && while kill -0 "$(cat /run/coracle.pid)" 2>/dev/null; do sleep 1; done; }

processor() { [ "$(uname -m)" = aarch64 ] && coracle --version && uname -a; }
check() { coracle check; }
ready() { start && wait_for kubectl get --raw /readyz && wait_for kubectl get node board && kubectl wait --for=condition=Ready node/board --timeout=400s && kubectl get nodes -o wide; }
version() { kubectl version -o yaml && kubectl get node board -o jsonpath='{.status.nodeInfo.architecture}' | grep -x arm64; }
pods() { kubectl apply -f /pods.yaml && kubectl rollout status deployment/web --timeout=400s && kubectl wait --for=condition=Complete job/once --timeout=400s && kubectl wait --for=condition=Ready pod/client --timeout=400s && kubectl get pods -A -o wide; }
container() { kubectl exec deployment/web -- uname -m | grep -x aarch64 && kubectl logs job/once; }
service() { kubectl exec client -- testbox get http://web.default.svc.cluster.local/file 30 | grep -x 'first and second'; }
ipvs() { proxy=--proxy-mode=ipvs && stop && start && wait_for kubectl get --raw /readyz && wait_for service && grep ip_vs /proc/modules && grep TCP /proc/net/ip_vs && coracle status | grep -i ipvs; }
policy() {
  kubectl apply -f /policy.yaml || return 1
  wait_for closed && kubectl delete -f /policy.yaml && wait_for service
}
closed() { ! kubectl exec client -- testbox get http://web.default.svc.cluster.local/file 5; }
volume() { kubectl exec deployment/web -- sh -c 'echo kept > /data/file' && kubectl get pvc data; }
killed() { # pods stay when coracle is killed, and it finds everything again
  before=$(kubectl get pods -l app=web -o jsonpath='{.items[*].status.containerStatuses[*].containerID}') || return 1
  kill -9 "$(cat /run/coracle.pid)" && sleep 1 && start && wait_for kubectl get --raw /readyz && wait_for service || return 1
  after=$(kubectl get pods -l app=web -o jsonpath='{.items[*].status.containerStatuses[*].containerID}')
  echo "$before, then $after"
  [ -n "$before" ] && [ "$before" = "$after" ] && kubectl exec deployment/web -- grep -x kept /data/file
}
snapshot() { coracle snapshot save && coracle snapshot list; }
rest() { sleep 60; grep -E 'VmRSS|RssAnon|Threads' "/proc/$(cat /run/coracle.pid)/status"; free -m; }
stops() { stop; tail -n 3 /var/log/coracle; }

step 'an arm64 processor' processor
step 'coracle check' check
step 'a node that is ready' ready
step 'version' version
step 'a Deployment and a Job' pods
step 'programs of this processor in containers, logs' container
step 'a name and a Service' service
step 'a NetworkPolicy, and none' policy
step 'a PersistentVolume' volume
step 'killed and started again' killed
step 'Services on IPVS' ipvs
step 'a snapshot' snapshot
step 'memory' rest
step 'an orderly end' stops
over 0
