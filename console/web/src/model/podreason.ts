// SPDX-License-Identifier: Apache-2.0

// Why a container does not run, in words: from the status of its pod, and from the last warning about it.

import { M } from "../base/morestrings";

type Obj = Record<string, any>;

const R = M.podReason;

/** VOLUME is what the kubelet writes before the reason why a volume is not there. */
const VOLUME = /^MountVolume\.SetUp failed for volume "[^"]*" : /;
const RPC = /rpc error: code = \w+ desc = /g;
/** WHOSE is what the kubelet adds to a message: names that the reader knows, and a UID. */
const WHOSE = / container=\S+ pod=[^\s(]+\([^\s()]+\)$/;

/** SILENT are reasons of a kubelet that has not more to say in the status. */
const SILENT = new Set(["", "ContainerCreating", "PodInitializing"]);

/** needsEvent says whether the status alone does not say why a container does not run. */
export function needsEvent(pod: Obj, container: string): boolean {
  if (!pod.spec?.nodeName || pod.status?.phase !== "Pending") return false;
  const state = stateOf(pod, unfinishedInit(pod, container) || container);
  return !state.running && !state.terminated && SILENT.has(state.waiting?.reason ?? "");
}

/**
 * podReason is why a container of a pod does not run; empty when it runs. The event is the message of the last warning
 * about the pod.
 */
export function podReason(pod: Obj, container: string, event = ""): string {
  const { phase, conditions = [], reason, message } = pod.status ?? {};
  if (phase === "Failed" || phase === "Succeeded") return [R.over(phase), reason, message].filter(Boolean).join(": ");
  const place = (conditions as Obj[]).find((c) => c.type === "PodScheduled" && c.status === "False");
  if (place) return R.notScheduled(schedulerWords(place.message || place.reason || ""));
  if (!pod.spec?.nodeName) return R.notScheduled("");
  const init = unfinishedInit(pod, container);
  const state = stateOf(pod, init || container);
  if (state.running) return init ? R.init(init, R.running) : "";
  const text = stateWords(state, event);
  return init ? R.init(init, text) : text;
}

/** stateOf is what the kubelet says of a container. */
function stateOf(pod: Obj, name: string): Obj {
  const { containerStatuses = [], initContainerStatuses = [], ephemeralContainerStatuses = [] } = pod.status ?? {};
  const all: Obj[] = [...containerStatuses, ...initContainerStatuses, ...ephemeralContainerStatuses];
  return all.find((s) => s.name === name)?.state ?? {};
}

/** unfinishedInit is the init container that a container waits for; empty when it waits for none. */
function unfinishedInit(pod: Obj, container: string): string {
  const statuses: Obj[] = pod.status?.initContainerStatuses ?? [];
  for (const c of (pod.spec?.initContainers ?? []) as Obj[]) {
    if (c.name === container) return "";
    const s = statuses.find((x) => x.name === c.name);
    const done = c.restartPolicy === "Always" ? s?.started : s?.state?.terminated?.exitCode === 0;
    if (!done) return s ? c.name : "";
  }
  return "";
}

function stateWords(state: Obj, event: string): string {
  const t = state.terminated;
  if (t) return [R.ended(t.reason ?? "", t.exitCode), t.message].filter(Boolean).join(": ");
  const { reason = "", message = "" } = state.waiting ?? {};
  if (SILENT.has(reason)) return [R.creating, message || eventWords(event)].filter(Boolean).join(": ");
  return [R.waiting, reason, message.replace(WHOSE, "")].filter(Boolean).join(": ");
}

function eventWords(event: string): string {
  return event.replace(VOLUME, "").replace(RPC, "");
}

/** schedulerWords leaves out how many nodes there are, and what preemption would do. */
function schedulerWords(message: string): string {
  return message
    .replace(/^0\/\d+ nodes are available: /, "")
    .replace(/\.? (preemption|no new claims to deallocate)\b.*$/s, "")
    .replace(/\.$/, "");
}
