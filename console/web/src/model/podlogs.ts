// SPDX-License-Identifier: Apache-2.0

// The logs of pods: of one, or of all that a workload has. Pods that appear later join.

import { signal, untracked } from "@preact/signals";
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
/** LAST_JOBS is how many Jobs of a CronJob are shown: by default it keeps four. */
const LAST_JOBS = 5;
const JOB_LABEL = "job-name";

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
  /** jobs are the names of the Jobs that are shown of a CronJob, the newest first. */
  readonly jobs = signal<string[] | null>(null);
  private closed = false;
  private readonly kind = kindByWord("pods");
  private readonly seen = new Set<string>();
  private readonly opened: Pod[] = [];
  private readonly listings: Listing[] = [];
  private readonly ends: (() => void)[] = [];

  constructor(
    readonly of: Place[],
    options: LogOptions,
    private wanted: string,
  ) {
    this.log = new Log(options);
    for (const place of of) {
      this.begin(place).catch((err: unknown) => {
        this.problem.value = (of.length > 1 ? place.name + ": " : "") + reasonOf(err);
      });
    }
  }

  private async begin({ kind, ns, name }: Place): Promise<void> {
    if (!this.kind) return;
    if (isKind(kind, "", "pods")) {
      this.seen.add(ns + "/" + name);
      return this.open(ns, name, this.seen.size - 1);
    }
    const o = await api<Obj>("GET", objectPath(kind, ns, name));
    if (isKind(kind, "batch", "cronjobs")) return this.followJobs(ns, name);
    const selector = selectorText(o.spec?.selector);
    if (!selector) throw new Error(S.logs.noSelector);
    this.follow(ns, selector);
  }

  /** followJobs follows the pods of a CronJob's last Jobs, and of those that come. */
  private followJobs(ns: string, name: string): void {
    const jobs = kindByWord("jobs.batch");
    if (!jobs) throw new Error(S.runNow.noJobs);
    const followed = new Set<string>();
    this.list(jobs, ns, {}, (listing) => {
      if (!listing.synced.peek()) return;
      const own = [...listing.rows.values()].filter((r) => r.owner?.kind === "CronJob" && r.owner.name === name);
      own.sort((a, b) => (a.created + a.name < b.created + b.name ? 1 : -1));
      this.jobs.value = own.slice(0, LAST_JOBS).map((r) => r.name);
      for (const job of this.jobs.value) {
        if (followed.has(job)) continue;
        followed.add(job);
        this.follow(ns, JOB_LABEL + "=" + job);
      }
    });
  }

  /** list reads a list, and calls back at each change. */
  private list(kind: Kind, ns: string, query: Record<string, string>, changed: (listing: Listing) => void): void {
    const listing = new Listing(listPath(kind, ns), query);
    const stop = listing.version.subscribe(() => untracked(() => changed(listing)));
    const failed = listing.error.subscribe((err) => {
      if (err) this.problem.value = err.message || err.reason;
    });
    this.ends.push(stop, failed, () => listing.close());
  }

  /** follow opens the logs of the pods that a selector selects. */
  private follow(ns: string, labelSelector: string): void {
    if (this.closed) return;
    this.list(this.kind!, ns, { labelSelector }, (listing) => {
      if (!this.listings.includes(listing)) this.listings.push(listing);
      this.empty.value = this.listings.every((l) => l.synced.peek() && l.rows.size === 0);
      for (const row of listing.rows.values()) {
        if (this.seen.has(row.uid) || this.seen.size >= MAX_PODS) continue;
        this.seen.add(row.uid);
        // A pod that is gone before its log was opened is no problem of the others.
        this.open(row.ns, row.name, this.seen.size - 1).catch(() => undefined);
      }
      const all = this.listings.reduce((n, l) => n + l.rows.size, 0);
      if (all > MAX_PODS) this.problem.value = S.logs.tooMany(MAX_PODS, all);
    });
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
        if (pod.sources.has(c)) continue;
        const name = this.of.some((p) => p.ns !== pod.ns) ? pod.ns + "/" + pod.name : pod.name;
        const job = pod.object.metadata.labels?.[JOB_LABEL] ?? "";
        pod.sources.set(
          c,
          this.log.open(name, c, path, pod.color, job, () => this.look(pod, c)),
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
