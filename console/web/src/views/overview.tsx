// SPDX-License-Identifier: Apache-2.0

// The first page. It begins with what is wrong, and why: the state, the last warning about it and the end of its log.

import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { api } from "../api/client";
import { type Client, type Message, type Request, Stream } from "../api/connection";
import { containersOf } from "../model/facts";
import { useKeys } from "../base/keys";
import { kindByWord, kinds, listPath, objectPath } from "../api/kinds";
import { Listing, now } from "../model/listing";
import {
  chartProblems,
  claimProblems,
  columnOf,
  nodeProblems,
  podProblems,
  type Problem,
  type Warning,
  warningsOf,
  workloadProblems,
} from "../model/problems";
import { format, hrefOf, namespace } from "../api/route";
import { problemsOf, ServerCard, Servers, useServers } from "./servers";
import { S } from "../base/strings";
import { duration, visible, visibleLines } from "../base/text";

/** SHOWN is how many problems are shown with their reasons. */
const SHOWN = 40;
const LOGS = 10;

/** REREAD is how old the reasons and the log of a problem become, in milliseconds. */
const REREAD = 300_000;

export function Overview() {
  if (kinds.value.length === 0) return <p class="empty">{S.loading}</p>;
  return <Loaded key={namespace.value} ns={namespace.value} />;
}

function open(word: string, ns: string, query?: Record<string, string>): Listing | null {
  const k = kindByWord(word);
  return k ? new Listing(listPath(k, ns), query) : null;
}

function Loaded({ ns }: { ns: string }) {
  const lists = useMemo(
    () => ({
      pods: open("pods", ns),
      nodes: open("nodes", ""),
      persistentvolumeclaims: open("persistentvolumeclaims", ns),
      deployments: open("deployments", ns),
      statefulsets: open("statefulsets", ns),
      helmcharts: open("helmcharts", ns),
      events: open("events", ns, { fieldSelector: "type=Warning" }),
    }),
    [],
  );
  useEffect(() => () => Object.values(lists).forEach((l) => l?.close()), []);
  const problems = useComputed(() => {
    const at = now.value;
    for (const l of Object.values(lists)) l?.version.value;
    const pods = lists.pods ? podProblems(lists.pods, at) : [];
    const all: Problem[] = [
      ...(lists.nodes ? nodeProblems(lists.nodes) : []),
      ...(lists.helmcharts ? chartProblems(lists.helmcharts, at) : []),
      ...(lists.persistentvolumeclaims ? claimProblems(lists.persistentvolumeclaims, at) : []),
      ...pods,
      ...(lists.deployments ? workloadProblems("deployments", lists.deployments, pods, at) : []),
      ...(lists.statefulsets ? workloadProblems("statefulsets", lists.statefulsets, pods, at) : []),
    ];
    return all.sort((a, b) => Number(a.passing) - Number(b.passing));
  });
  const warnings = useComputed(() => {
    const l = lists.events;
    if (!l) return [];
    l.version.value;
    return warningsOf(l);
  });
  const servers = useServers();
  const summary = useComputed(() => ({
    nodes: tally(lists.nodes, (t) => /^Ready(,|$)/.test(t)),
    pods: tally(lists.pods, (t) => t === "Running" || t === "Completed"),
  }));
  useKeys([
    { key: "j ArrowDown", label: S.keys.down, run: () => focusLink(1), hint: true },
    { key: "k ArrowUp", label: S.keys.up, run: () => focusLink(-1), hint: true },
  ]);
  // Most users of a namespace may not see the nodes: that is nothing wrong.
  const blind = lists.nodes?.error.value?.code === 403;
  // Nor the charts: those are the administrators'.
  const unseen = (l: Listing) => l.error.value?.code === 403 && (l === lists.nodes || l === lists.helmcharts);
  const errors = Object.values(lists).flatMap((l) => (l?.error.value && !unseen(l) ? [l.error.value.message] : []));
  const whole = Object.values(lists).every((l) => !l || l.synced.value || l.error.value);
  const { nodes, pods } = summary.value;
  const byObject = new Map(warnings.value.map((w) => [w.ns + "/" + w.object, w]).reverse() as [string, Warning][]);
  const list = problems.value;
  // What is wrong with the servers comes first: much of the rest may follow from it.
  const ofServers = problemsOf(servers.value);
  const count = list.length + ofServers.length;

  return (
    <section class="view" aria-label={S.overview.title}>
      <div class="pane scroll">
        <div class="summary" role="status">
          <h1>{count ? S.overview.problems(count) : S.overview.title}</h1>
          {nodes && (
            <a href={listHref("nodes")} class={nodes.good < nodes.all ? "bad" : "good"}>
              {S.overview.nodes(nodes.good, nodes.all)}
            </a>
          )}
          {pods && (
            <a href={listHref("pods")} class={pods.good < pods.all ? "passing" : "good"}>
              {S.overview.pods(pods.good, pods.all)}
            </a>
          )}
          <span class="faint">{S.overview.scope(ns)}</span>
        </div>
        {errors.length > 0 && (
          <div class="problem">
            <p>{S.overview.partial}</p>
            {errors.map((e) => (
              <p key={e} class="faint">
                {visible(e)}
              </p>
            ))}
          </div>
        )}
        {count === 0 && (
          <p class={whole && errors.length === 0 ? "good" : "faint"}>
            {!whole ? S.overview.looking : errors.length > 0 ? "" : blind ? S.overview.nothingOfYours : S.overview.nothing}
          </p>
        )}
        {count > 0 && (
          <section aria-label={S.overview.wrong}>
            <ul class="cards">
              {ofServers.map((p) => (
                <ServerCard key={p.title + p.text} problem={p} />
              ))}
              {list.slice(0, SHOWN).map((p, i) => (
                <Card key={p.id} problem={p} warning={byObject.get((p.row.ns || "default") + "/" + wordOfObject(p))} log={i < LOGS} />
              ))}
            </ul>
            {list.length > SHOWN && <p class="faint">{S.overview.more(list.length - SHOWN)}</p>}
          </section>
        )}
        {servers.value && <Servers report={servers.value} />}
        {warnings.value.length > 0 && (
          <section class="related">
            <h2>{S.overview.warnings}</h2>
            <table class="plain">
              <tbody>
                {warnings.value.slice(0, 30).map((w) => (
                  <tr key={w.ns + w.object + w.reason}>
                    <td class="faint short-cell">{S.overview.ago(duration(Math.max(0, Math.floor((now.value - w.at) / 1000))))}</td>
                    <td class="short-cell">{w.count > 1 && S.overview.times(w.count)}</td>
                    <td class="bad">{visible(w.reason)}</td>
                    <td>{objectLink(w)}</td>
                    <td>{visible(w.message)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </section>
        )}
      </div>
    </section>
  );
}

/** focusLink moves the focus among the links to what is wrong. */
function focusLink(by: number): void {
  const links = [...document.querySelectorAll<HTMLElement>(".card-head a:first-of-type, .related td a")];
  const at = links.indexOf(document.activeElement as HTMLElement);
  links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
}

function tally(l: Listing | null, good: (status: string) => boolean): { good: number; all: number } | null {
  if (!l || l.error.value) return null;
  l.version.value;
  const at = columnOf(l, "Status");
  let n = 0;
  for (const row of l.rows.values()) if (good(String(row.cells[at] ?? ""))) n++;
  return { good: n, all: l.rows.size };
}

function listHref(word: string): string {
  const k = kindByWord(word);
  return k ? format({ view: "list", kind: k.id }) : "#/";
}

/** wordOfObject names a problem's object as the events' table does. */
function wordOfObject(p: Problem): string {
  return (kindByWord(p.word)?.singular || p.word.replace(/s$/, "")) + "/" + p.row.name;
}

function objectLink(w: Warning) {
  const [word, name] = w.object.split("/");
  const k = kindByWord(word);
  const text = (w.ns ? w.ns + "/" : "") + w.object;
  return k && name ? <a href={hrefOf(k, { ns: k.namespaced ? w.ns : "", name })}>{visible(text)}</a> : visible(text);
}

function Card({ problem: p, warning, log }: { problem: Problem; warning: Warning | undefined; log: boolean }) {
  const k = kindByWord(p.word)!;
  const why = useSignal<string[]>([]);
  const lines = useSignal<string[]>([]);
  useEffect(() => {
    let closed = false;
    let stream: Stream | null = null;
    const path = objectPath(k, p.row.ns, p.row.name);
    api<Record<string, any>>("GET", path).then(
      (o) => {
        if (closed) return;
        why.value = reasons(o);
        if (p.word !== "pods" || !log) return;
        const bad = containersOf(o).find((c) => !c.ready && (c.restarts > 0 || c.last || c.tone === "bad"));
        if (bad && (bad.restarts > 0 || /exit code/.test(bad.state))) stream = readLog(path + "/log", bad.name, lines);
      },
      () => undefined,
    );
    return () => {
      closed = true;
      stream?.close();
    };
    // A page that stands open for days shows the log of now.
  }, [p.reason, Math.floor(now.value / REREAD)]);
  return (
    <li class={"card" + (p.passing ? " passing-card" : "")}>
      <div class="card-head">
        <strong class={p.passing ? "passing" : "bad"}>{visible(p.reason)}</strong>
        <a href={hrefOf(k, p.row)}>
          {k.singular || k.resource} {p.row.ns && visible(p.row.ns) + "/"}
          <strong>{visible(p.row.name)}</strong>
        </a>
        {p.word === "pods" && <a href={format({ view: "logs", kind: k.id, ns: p.row.ns, name: p.row.name })}>{S.action.logs}</a>}
      </div>
      {why.value.map((t) => (
        <div key={t}>{visible(t)}</div>
      ))}
      {warning && (
        <div>
          <span class="faint">{S.overview.ago(duration(Math.max(0, Math.floor((now.value - warning.at) / 1000))))}</span>{" "}
          {visible(warning.reason)}: {visible(warning.message)}
        </div>
      )}
      {lines.value.length > 0 && (
        <details open>
          <summary class="faint">{S.overview.log}</summary>
          <pre class="data" tabIndex={0} aria-label={S.overview.log}>
            {visibleLines(lines.value.join("\n"))}
          </pre>
        </details>
      )}
    </li>
  );
}

/** reasons are an object's own words for what is wrong with it. */
function reasons(o: Record<string, any>): string[] {
  const out: string[] = [];
  if (o.kind === "Pod") {
    for (const c of containersOf(o)) {
      if (c.tone === "bad" || c.tone === "passing") out.push(`${c.name}: ${c.state}`);
      if (c.last && !c.ready) out.push(`${c.name}: ${S.object.before(c.last)}`);
    }
    if (o.status?.message) out.push(o.status.message);
  }
  for (const c of o.status?.conditions ?? []) {
    const good = /^(Ready|PodScheduled|Available|Progressing)$/.test(c.type)
      ? "True"
      : /Pressure$|Unavailable$|Failure$/.test(c.type)
        ? "False"
        : c.status;
    if (c.status !== good && c.message && !/^containers with/.test(c.message)) out.push(`${c.type}: ${c.message}`);
  }
  return [...new Set(out)].slice(0, 4);
}

/** readLog reads the end of a container's log. The server gives the last run of one that waits to run again. */
function readLog(path: string, container: string, lines: { value: string[] }): Stream {
  const request: Request = { op: "log", path, query: { container, tailLines: "6" } };
  const client: Client = {
    watch: false,
    resume: () => {
      lines.value = [];
      return request;
    },
    message(m: Message) {
      if (m.type === "lines") lines.value = [...lines.value, ...m.lines].slice(-6);
    },
  };
  return new Stream(request, client);
}
