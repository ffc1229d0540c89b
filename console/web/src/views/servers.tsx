// SPDX-License-Identifier: Apache-2.0

// The cluster's servers, as the one that was asked knows them. Clusters that are not Coracle's have no such report, and
// not every user may read it: then nothing is shown.

import { useSignal, type Signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { api, ApiError, reasonOf } from "../api/client";
import { now } from "../model/listing";
import { S } from "../base/strings";
import { age, bytes, visible } from "../base/text";
import type { Tone } from "../base/tones";

const PERIOD = 10_000;

interface Server {
  name: string;
  address?: string;
  role: string;
  self?: boolean;
  answers: boolean;
  heard?: string;
  lag: number;
  version?: string;
  full?: boolean;
  stalled?: boolean;
  refusing?: string;
  reachedBy?: string[] | null;
}

interface Component {
  name: string;
  state: string;
  since?: string;
  message?: string;
}

export interface Report {
  servers: Server[];
  store?: { live: number; total: number; quota?: number };
  snapshots?: { count: number; last?: string; lastSize?: number; failures: number; scheduled: boolean };
  virtualIPs?: string[];
  networkBackend?: string;
  failures: string;
  problems: string[];
  notes: string[];
  components: Component[];
  /** trouble is why the report is old; empty while it is not. */
  trouble: string;
}

/** useServers reads the report again and again while the view is shown and the tab is not hidden; null without one. */
export function useServers(): Signal<Report | null> {
  const report = useSignal<Report | null>(null);
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let closed = false;
    let reading = false;
    const read = async () => {
      clearTimeout(timer);
      if (closed || reading || document.hidden) return;
      reading = true;
      let again = true;
      try {
        const r = await api<Partial<Record<keyof Report, any>>>("GET", "/coracle/status");
        if (!closed)
          report.value = {
            servers: r.servers ?? [],
            failures: r.failures ?? "",
            problems: r.problems ?? [],
            notes: r.notes ?? [],
            components: r.components ?? [],
            store: r.store,
            snapshots: r.snapshots,
            virtualIPs: r.virtualIPs,
            networkBackend: r.networkBackend,
            trouble: "",
          };
      } catch (err) {
        if (closed) return;
        if (err instanceof ApiError && (err.code === 403 || err.code === 404)) {
          report.value = null;
          again = false;
        } else if (report.value) {
          report.value = { ...report.value, trouble: reasonOf(err) };
        }
      } finally {
        reading = false;
      }
      if (again && !closed) timer = setTimeout(read, PERIOD);
    };
    // A hidden tab asks for nothing; one that is shown again asks at once.
    const shown = () => void read();
    document.addEventListener("visibilitychange", shown);
    void read();
    return () => {
      closed = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, []);
  return report;
}

interface ServerProblem {
  text: string;
  title: string;
  passing: boolean;
}

/** problemsOf are what the report says is wrong: first the servers, then the components of the one that was asked. */
export function problemsOf(r: Report | null): ServerProblem[] {
  if (!r) return [];
  const self = r.servers.find((s) => s.self)?.name ?? "";
  return [
    ...r.problems.map((text) => ({ title: S.servers.problem, text, passing: false })),
    ...r.components
      .filter((c) => c.state === "failed" || c.state === "degraded")
      .map((c) => ({ title: S.servers.component(c.name, c.state, self), text: c.message ?? "", passing: c.state === "degraded" })),
  ];
}

export function ServerCard({ problem: p }: { problem: ServerProblem }) {
  return (
    <li class={"card" + (p.passing ? " passing-card" : "")}>
      <div class="card-head">
        <strong class={p.passing ? "passing" : "bad"}>{visible(p.title)}</strong>
      </div>
      {p.text && <div>{visible(p.text)}</div>}
    </li>
  );
}

/** stateOf is how a server is, in words. */
function stateOf(s: Server): { text: string; tone: Tone } {
  const others = s.reachedBy ?? [];
  if (!s.answers)
    return others.length ? { text: S.servers.reachedBy(others.join(", ")), tone: "passing" } : { text: S.servers.silent, tone: "bad" };
  if (s.stalled) return { text: S.servers.stalled, tone: "bad" };
  if (s.full) return { text: S.servers.full, tone: "bad" };
  if (s.refusing) return { text: S.servers.refusing, tone: "bad" };
  return { text: S.servers.answers, tone: "good" };
}

export function Servers({ report: r }: { report: Report }) {
  if (r.servers.length === 0 && !r.failures) return null;
  return (
    <section class="related" aria-label={S.servers.title}>
      <h2>{S.servers.title}</h2>
      {r.trouble && <p class="passing">{visible(r.trouble)}</p>}
      {r.failures && <p>{S.servers.failures(visible(r.failures))}</p>}
      <table class="plain">
        <thead>
          <tr>
            {S.servers.columns.map((c) => (
              <th key={c} scope="col">
                {c}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {r.servers.map((s, i) => {
            const state = stateOf(s);
            return (
              <tr key={i}>
                <td>{visible(s.name)}</td>
                <td>{visible(s.role)}</td>
                <td class={state.tone}>{visible(state.text)}</td>
                <td>{s.self || !s.heard ? "" : S.overview.ago(age(s.heard, now.value))}</td>
                <td>{s.lag > 0 ? S.servers.lag(s.lag) : ""}</td>
                <td>{visible(s.version)}</td>
                <td>{visible(s.address)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {r.notes.map((text) => (
        <p key={text} class="passing">
          {visible(text)}
        </p>
      ))}
      <More report={r} />
    </section>
  );
}

/** More is what the server that was asked has of the cluster's other parts. What is not configured is not shown. */
function More({ report: r }: { report: Report }) {
  const leader = r.servers.find((s) => s.role === "leader")?.name;
  const snapshots = r.snapshots;
  const facts: [string, string, Tone][] = [];
  if (r.virtualIPs?.length)
    facts.push([S.servers.virtualIP, r.virtualIPs.join(", ") + (leader ? S.servers.heldBy(leader) : ""), leader ? "" : "passing"]);
  if (r.networkBackend) facts.push([S.servers.backend, r.networkBackend, ""]);
  if (r.store)
    facts.push([
      S.servers.store,
      S.servers.storeText(bytes(r.store.live), bytes(r.store.total), r.store.quota ? bytes(r.store.quota) : ""),
      r.store.quota && r.store.live >= r.store.quota * 0.8 ? "passing" : "",
    ]);
  if (snapshots) {
    const last = snapshots.last
      ? S.servers.lastSnapshot(S.overview.ago(age(snapshots.last, now.value)), bytes(snapshots.lastSize ?? 0))
      : "";
    facts.push([
      S.servers.snapshots,
      S.servers.snapshotText(snapshots.count, last, snapshots.failures, snapshots.scheduled),
      snapshots.failures ? "passing" : "",
    ]);
  }
  const self = r.servers.find((s) => s.self)?.name ?? "";
  return (
    <>
      <dl class="facts">
        {facts.map(([k, v, tone]) => (
          <div key={k}>
            <dt>{k}</dt>
            <dd class={tone}>{visible(v)}</dd>
          </div>
        ))}
      </dl>
      {r.components.length > 0 && (
        <details>
          <summary class="faint">{S.servers.parts(visible(self))}</summary>
          <table class="plain">
            <tbody>
              {r.components.map((c) => (
                <tr key={c.name}>
                  <td>{visible(c.name)}</td>
                  <td class={c.state === "failed" ? "bad" : c.state === "degraded" ? "passing" : c.state === "running" ? "good" : ""}>
                    {visible(c.state)}
                  </td>
                  <td class="faint">{c.since ? age(c.since, now.value) : ""}</td>
                  <td>{visible(c.message)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </details>
      )}
    </>
  );
}
