// SPDX-License-Identifier: Apache-2.0

// The logs of pods: of one, or of all that a workload has. Pods that appear later join.

import { signal } from "@preact/signals";
import { api, reasonOf } from "../api/client";
import { isKind, type Kind, kindByWord, listPath, objectPath } from "../api/kinds";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { chosenContainer, logContainers } from "./containers";
import { Listing } from "./listing";
import { Log, type LogOptions, type LogSource, type State } from "./logs";
import { needsEvent, podReason } from "./podreason";
import { selectorText } from "./selector";

type Obj = Record<string, any>;

export const COLORS = 8;
/** MAX_PODS is how many pods' logs are followed at once. */
const MAX_PODS = 40;

/** Place is an object whose pods' logs are read. */
export interface Place {
  kind: Kind;
  ns: string;
  name: string;
}

interface Pod {
  ns: string;
  name: string;
  color: number;
  object: Obj;
  sources: Map<string, LogSource>;
}

export class PodLogs {
  readonly log: Log;
  readonly containers = signal<string[]>([]);
  readonly pods = signal(0);
  /** problem is why not all is shown. */
  readonly problem = signal("");
  /** empty is true for a workload that has no pods. */
  readonly empty = signal(false);
  private closed = false;
  private readonly kind = kindByWord("pods");
  private readonly seen = new Set<string>();
  private readonly opened: Pod[] = [];
  private readonly ends: (() => void)[] = [];

  constructor(
    readonly of: Place,
    options: LogOptions,
    private wanted: string,
  ) {
    this.log = new Log(options);
    this.begin().catch((err: unknown) => {
      this.problem.value = reasonOf(err);
    });
  }

  private async begin(): Promise<void> {
    const { kind, ns, name } = this.of;
    if (!this.kind) return;
    if (isKind(kind, "", "pods")) return this.open(ns, name, 0);
    const o = await api<Obj>("GET", objectPath(kind, ns, name));
    const selector = selectorText(o.spec?.selector);
    if (!selector) throw new Error(S.logs.noSelector);
    this.follow(ns, selector);
  }

  /** follow opens the logs of the pods that a selector selects. */
  private follow(ns: string, labelSelector: string): void {
    if (this.closed) return;
    const listing = new Listing(listPath(this.kind!, ns), { labelSelector });
    const stop = listing.version.subscribe(() => {
      this.empty.value = listing.synced.value && listing.rows.size === 0;
      for (const row of listing.rows.values()) {
        if (this.seen.has(row.uid) || this.seen.size >= MAX_PODS) continue;
        this.seen.add(row.uid);
        // A pod that is gone before its log was opened is no problem of the others.
        this.open(row.ns, row.name, this.seen.size - 1).catch(() => undefined);
      }
      if (listing.rows.size > MAX_PODS) this.problem.value = S.logs.tooMany(MAX_PODS, listing.rows.size);
    });
    const failed = listing.error.subscribe((err) => {
      if (err) this.problem.value = err.message || err.reason;
    });
    this.ends.push(stop, failed, () => listing.close());
  }

  private async open(ns: string, name: string, at: number): Promise<void> {
    const object = await api<Obj>("GET", objectPath(this.kind!, ns, name));
    if (this.closed) return;
    const pod: Pod = { ns, name, color: at % COLORS, object, sources: new Map() };
    this.opened.push(pod);
    this.pods.value = this.opened.length;
    this.containers.value = [...new Set([...this.containers.value, ...logContainers(object)])];
    this.choose(this.wanted);
  }

  /** choose opens the logs of another container, or of all ("*"), and keeps those that are open. */
  choose(wanted: string): void {
    this.wanted = wanted;
    const gone = new Set<LogSource>();
    for (const pod of this.opened) {
      const all = logContainers(pod.object);
      const chosen = wanted === "*" ? all : [chosenContainer(pod.object, all, wanted)];
      for (const [c, source] of pod.sources) {
        if (chosen.includes(c)) continue;
        pod.sources.delete(c);
        gone.add(source);
      }
      const path = objectPath(this.kind!, pod.ns, pod.name) + "/log";
      for (const c of chosen) {
        if (!pod.sources.has(c))
          pod.sources.set(
            c,
            this.log.open(pod.name, c, path, pod.color, () => this.look(pod, c)),
          );
      }
    }
    if (gone.size > 0) this.log.close(gone);
  }

  /** look asks a pod why the log of a container has ended. */
  private async look(pod: Pod, container: string): Promise<State> {
    try {
      const object = await api<Obj>("GET", objectPath(this.kind!, pod.ns, pod.name));
      const over = object.status?.phase === "Succeeded" || object.status?.phase === "Failed";
      return { over, why: over ? "" : podReason(object, container, await lastWarning(object, container)) };
    } catch {
      return { over: true, why: "" };
    }
  }

  close(): void {
    this.closed = true;
    for (const end of this.ends) end();
    this.log.closeAll();
  }
}

/** lastWarning is the newest warning about a pod whose status does not say why a container does not run. */
export async function lastWarning(pod: Obj, container: string): Promise<string> {
  if (!needsEvent(pod, container)) return "";
  const { namespace, uid } = pod.metadata;
  const query = new URLSearchParams({ fieldSelector: `type=Warning,involvedObject.uid=${uid}`, limit: "50" });
  const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}/events?${query.toString()}`;
  try {
    const { items } = await api<{ items: Obj[] }>("GET", path);
    const at = (e: Obj): number => Date.parse(e.series?.lastObservedTime ?? e.lastTimestamp ?? e.eventTime ?? "") || 0;
    return items.sort((a, b) => at(b) - at(a))[0]?.message ?? "";
  } catch {
    // Who may not read events sees the status alone.
    return "";
  }
}

/** waitingTexts are the reasons of sources that show nothing, those of one reason together. */
export function waitingTexts(log: Log): string[] {
  const all = log.sources.value;
  const pods = new Map<string, Set<string>>();
  const out: string[] = [];
  for (const s of all) {
    const state = s.state.value;
    const why = s.message_.value;
    if (state === "open" && !why) continue;
    if (state === "ended" && !why) {
      if (all.length === 1) out.push(S.logs.ended);
      continue;
    }
    const text = why || M.logs.notOpen;
    pods.set(text, (pods.get(text) ?? new Set()).add(s.pod));
  }
  const one = all.every((s) => s.pod === all[0].pod);
  for (const [why, names] of pods) out.push(one ? why : M.logs.some([...names].slice(0, 3), names.size, why));
  return out;
}
