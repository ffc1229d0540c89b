// SPDX-License-Identifier: Apache-2.0

// One sentence for what is wrong, in plain words, from an object and the warnings about it. Only what the server says
// is in it: what it does not say is not guessed.

import { O } from "../base/overviewstrings";
import type { Finding } from "../api/health";

type Obj = Record<string, any>;

export interface Warning {
  ns: string;
  /** object is its kind and name, as the events' table has them: pod/web-1. */
  object: string;
  reason: string;
  message: string;
  /** at is when it was seen last, in milliseconds. */
  at: number;
  count: number;
  /** part is the part of the object: spec.containers{web}. */
  part?: string;
}

const UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}";
const POD_WITH_ID = new RegExp(` ?\\bpod="?[a-z0-9.-]+_[a-z0-9.-]+\\(${UUID}\\)"?`, "g");
const ID = new RegExp(` ?\\(?(?<![\\w-])"?${UUID}\\b"?\\)?`, "g"); // not those that are a part of a name
/** LONGEST is how much of a text is looked at: who writes an event may write a megabyte. */
const LONGEST = 2000;

/** clean takes UIDs and the noise of gRPC out of a text of Kubernetes. */
export function clean(text: string): string {
  return text
    .slice(0, LONGEST)
    .replace(POD_WITH_ID, "")
    .replace(ID, "")
    .replace(/rpc error: code = \w+ desc = /g, "")
    .trim();
}

/** mergeWarnings merges those about one object that say the same. The newest are first. */
export function mergeWarnings(all: Warning[]): Warning[] {
  const merged = new Map<string, Warning>();
  for (const w of all) {
    // A probe's message changes with its numbers, and probes of different kinds are different news.
    const key = [w.ns, w.object, w.reason, w.reason === "Unhealthy" ? (w.part ?? "") + w.message.split(" ")[0] : ""].join("\n");
    const other = merged.get(key);
    if (!other) merged.set(key, w);
    else merged.set(key, { ...(w.at > other.at ? w : other), count: w.count + other.count });
  }
  return [...merged.values()].sort((a, b) => b.at - a.at);
}

/** best is the warning that says most: the newest, and BackOff only when there is no other. */
export function best(warnings: Warning[]): Warning | undefined {
  return warnings.find((w) => w.reason !== "BackOff") ?? warnings[0];
}

/** missing finds a ConfigMap or a Secret that is not there, in a text of the kubelet. */
function missing(text: string): string {
  const m = /\b(configmap|secret) "([^"]+)" not found/.exec(text);
  if (m) return O.pod.missing(m[1] === "secret" ? "Secret" : "ConfigMap", m[2]);
  const key = /couldn't find key (\S+) in (ConfigMap|Secret) (?:[^/\s]+\/)?(\S+)/.exec(text);
  return key ? O.pod.missing("Key", `${key[1]} of ${key[2]} ${key[3]}`) : "";
}

/** probeReason is why a probe has failed, in short. */
export function probeReason(message: string): string {
  const text = clean(message.replace(/^\w+ probe (?:failed|errored(?: and resulted in \w+ state)?):\s*/, ""));
  const dial = /dial tcp \S*?:(\d+): (?:connect: )?(.+)$/.exec(text);
  if (dial) return O.pod.at(dial[2], dial[1]);
  const url = /^(?:Get|Post) "\w+:\/\/[^"]*?:(\d+)[^"]*": (.+)$/.exec(text);
  if (url) return O.pod.at(url[2].replace(/^net\/http: /, ""), url[1]);
  return text.replace(/^HTTP probe failed with statuscode: /, "HTTP status ");
}

/** imageReason is why an image cannot be used: the registry's words, without what repeats the image. */
function imageReason(text: string): string {
  return clean(text)
    .replace(/^Back-off pulling image "[^"]*":? ?/, "")
    .replace(/^ErrImagePull: /, "")
    .replace(/^(?:Failed to pull image "[^"]*": ?)/, "")
    .replace(/^failed to pull and unpack image "[^"]*": ?/, "");
}

const IMAGE =
  /^(ImagePullBackOff|ErrImagePull|ErrImageNeverPull|InvalidImageName|RegistryUnavailable|SignatureValidationFailed|ImageInspectError)$/;
const CONFIG = /^(CreateContainerConfigError|CreateContainerError|PreCreateHookError)$/;
const START = /^(RunContainerError|StartError|ContainerCannotRun|PostStartHookError)$/;

/** podSentence is what is wrong with a pod. Warnings are those about it, the newest first. */
export function podSentence(pod: Obj, warnings: Warning[]): string {
  const st = pod.status ?? {};
  if (pod.metadata?.deletionTimestamp) return O.pod.deleting((pod.metadata.finalizers ?? []).join(", "));
  const unscheduled = (st.conditions ?? []).find((c: Obj) => c.type === "PodScheduled" && c.status === "False");
  if (unscheduled) return O.pod.unscheduled(clean(unscheduled.message ?? "").replace(/\.? (?:preemption: |no new claims).*$/, ""));
  const spec = new Map<string, Obj>([...(pod.spec?.initContainers ?? []), ...(pod.spec?.containers ?? [])].map((c: Obj) => [c.name, c]));
  const all: Obj[] = [...(st.initContainerStatuses ?? []), ...(st.containerStatuses ?? [])];
  const bad = all.filter((s) => !(s.ready || s.state?.terminated?.exitCode === 0)).sort((a, b) => weight(b) - weight(a));
  const one: Obj | undefined = bad[0] ?? all.slice().sort((a, b) => (b.restartCount ?? 0) - (a.restartCount ?? 0))[0];
  const volume = warnings.find((w) => /^Failed(Mount|AttachVolume|MapVolume)$/.test(w.reason));
  if (!one || (one.state?.waiting && /^(ContainerCreating|PodInitializing)$/.test(one.state.waiting.reason ?? "") && !one.restartCount)) {
    if (volume) return missing(volume.message) || O.pod.volume(clean(volume.message));
    const other = best(warnings);
    return [st.reason, st.message || (other && clean(`${other.reason}: ${other.message}`))].filter(Boolean).join(": ");
  }
  const name: string = one.name;
  const restarts: number = one.restartCount ?? 0;
  const waiting: Obj = one.state?.waiting ?? {};
  const ended: Obj = one.state?.terminated ?? one.lastState?.terminated ?? {};
  const message = clean(waiting.message ?? "");
  if (IMAGE.test(waiting.reason)) {
    const pull = warnings.find((w) => w.reason === "Failed" && /image/i.test(w.message) && !/^Error: /.test(w.message));
    return O.pod.image(name, spec.get(name)?.image ?? one.image, imageReason(message) || imageReason(pull?.message ?? ""));
  }
  if (CONFIG.test(waiting.reason)) return missing(message) || O.pod.config(name, message);
  if (START.test(waiting.reason) || START.test(ended.reason))
    return missing(message) || O.pod.start(name, clean(ended.message ?? "") || message);
  if (ended.reason === "OOMKilled") return O.pod.memory(name, spec.get(name)?.resources?.limits?.memory ?? "", restarts);
  const probe = warnings.find((w) => w.reason === "Unhealthy" && /^(Liveness|Startup) probe/.test(w.message) && isPart(w, name));
  // A probe that fails kills the container: its exit code is no news then.
  if (probe && restarts > 0 && !one.state?.terminated)
    return O.pod.probe(probe.message.split(" ")[0], name, probeReason(probe.message), restarts);
  if (ended.exitCode !== undefined && (ended.exitCode !== 0 || restarts > 0) && !one.state?.running)
    return O.pod.exit(name, ended.exitCode, clean(ended.message ?? ""), restarts);
  if (st.reason || st.message) return [st.reason, clean(st.message ?? "")].filter(Boolean).join(": ");
  const ready = warnings.find((w) => w.reason === "Unhealthy" && isPart(w, name));
  if (ready && !one.ready) return O.pod.probe(ready.message.split(" ")[0], name, probeReason(ready.message), 0);
  if (restarts > 0)
    return ended.exitCode === undefined
      ? O.pod.restarts(name, restarts)
      : O.pod.exit(name, ended.exitCode, clean(ended.message ?? ""), restarts);
  const other = best(warnings);
  return other
    ? clean(`${other.reason}: ${other.message}`)
    : waiting.reason
      ? waiting.reason + (message ? ": " + message : "")
      : O.pod.notReady(name);
}

/** isPart is whether a warning is about a container; those without a part are about any. */
function isPart(w: Warning, container: string): boolean {
  return !w.part?.includes("{") || w.part.includes(`{${container}}`);
}

/** weight is how much a container's state tells: one that waits with a reason, one that ended, one that only runs. */
function weight(s: Obj): number {
  if (s.state?.waiting && !/^(ContainerCreating|PodInitializing)$/.test(s.state.waiting.reason ?? "")) return 4;
  if (s.state?.terminated) return 3;
  return s.state?.running ? 2 : 1;
}

/** cannotMake says why pods cannot be made, from the words of a controller. */
export function cannotMake(message: string): string {
  const text = clean(message);
  const quota = /exceeded quota: ([^,]+)(?:, (.*))?$/.exec(text);
  if (quota) return O.quota(quota[1], quota[2] ?? "");
  const must = /failed quota: ([^:]+): (.*)$/.exec(text);
  return O.cannotMake((must ? `quota ${must[1]}: ${must[2]}` : text).replace(/^Error creating: /, ""));
}

/** findingSentence is what is wrong in a finding. */
export function findingSentence(f: Finding): string {
  const g = { ...f, text: clean(f.text ?? "") };
  return f.what === "cannotMake" ? cannotMake(g.text) : (O.finding[f.what]?.(g) ?? [f.what, f.about, g.text].filter(Boolean).join(": "));
}

/** conditionWords are the words of the conditions of an object that say that something is wrong. */
export function conditionWords(o: Obj): string[] {
  const out: string[] = [];
  for (const c of o.status?.conditions ?? []) {
    const good = /^(Ready|PodScheduled|Available|Progressing|Initialized|ContainersReady)$/.test(c.type)
      ? "True"
      : /Pressure$|Unavailable$|Failure$|^Failed$/.test(c.type)
        ? "False"
        : c.status;
    if (c.status !== good && c.message && !/^containers with/.test(c.message)) out.push(clean(c.message));
  }
  return [...new Set(out)].slice(0, 4);
}
