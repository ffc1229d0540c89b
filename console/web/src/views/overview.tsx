// SPDX-License-Identifier: Apache-2.0

// The first page. It begins with what is wrong, and why: one sentence for each cause. It is green only when all that the
// user may see was read, and nothing of it is wrong.

import { batch, useComputed, useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { api } from "../api/client";
import { type Client, connected, type Message, type Request, since, Stream, WITH_USE } from "../api/connection";
import { broken } from "../model/broken";
import { type Card, cardsOf, needsObject, type Problem, sentenceOf, warningsAbout } from "../model/cards";
import { containersOf } from "../model/facts";
import { useKeys } from "../base/keys";
import { type Kind, kindByWord, kinds, listPath, objectPath } from "../api/kinds";
import { HealthCheck, STALE } from "../model/health";
import { Listing, now } from "../model/listing";
import { chartProblems, claimProblems, columnOf, nodeProblems, podProblems, warningsOf, workloadProblems } from "../model/problems";
import { format, hrefOf, namespace } from "../api/route";
import { clean, conditionWords, findingSentence, type Warning } from "../model/sentences";
import { problemsOf, ServerCard, Servers, useServers } from "./servers";
import { O } from "../base/overviewstrings";
import { S } from "../base/strings";
import { clock, duration, visible, visibleLines } from "../base/text";
import { measured } from "../model/useusage";
import { UseOverview } from "./useoverview";

/** SHOWN is how many cards are shown, and PODS how many pods and warnings of one. */
const SHOWN = 40;
const PODS = 10;

/** REREAD is how old a card's object and its log become, in milliseconds. */
const REREAD = 300_000;

/** RECENT is how old a warning is that keeps the page from being green, in milliseconds. */
const RECENT = 600_000;

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
      pods: open("pods", ns, measured("pods") ? WITH_USE : undefined),
      nodes: open("nodes", ""),
      persistentvolumeclaims: open("persistentvolumeclaims", ns),
      deployments: open("deployments", ns),
      statefulsets: open("statefulsets", ns),
      helmcharts: open("helmcharts", ns),
      events: open("events", ns, { fieldSelector: "type=Warning" }),
    }),
    [],
  );
  const check = useMemo(() => new HealthCheck(ns), []);
  useEffect(
    () => () => {
      Object.values(lists).forEach((l) => l?.close());
      check.close();
      broken.value = new Map();
    },
    [],
  );
  const cards = useComputed(() => {
    const at = now.value;
    for (const l of Object.values(lists)) l?.version.value;
    const problems: Problem[] = [
      ...(lists.nodes ? nodeProblems(lists.nodes) : []),
      ...(lists.helmcharts ? chartProblems(lists.helmcharts, at) : []),
      ...(lists.persistentvolumeclaims ? claimProblems(lists.persistentvolumeclaims, at) : []),
      ...(lists.pods ? podProblems(lists.pods, at) : []),
      ...(lists.deployments ? workloadProblems("deployments", lists.deployments, at) : []),
      ...(lists.statefulsets ? workloadProblems("statefulsets", lists.statefulsets, at) : []),
    ];
    const { findings, byPath } = check.state.value;
    return cardsOf<Kind>(problems, findings, kindByWord, (path) => byPath.get(path));
  });
  useEffect(
    () =>
      cards.subscribe((list) => {
        const counts = new Map<string, number>();
        const add = (id: string, n: number) => n && counts.set(id, (counts.get(id) ?? 0) + n);
        const pods = kindByWord("pods")?.id;
        for (const c of list) {
          if (pods) add(pods, c.pods.length);
          if (c.kind.id !== pods) add(c.kind.id, 1);
        }
        batch(() => (broken.value = counts));
      }),
    [],
  );
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
  const all = Object.values(lists).filter((l) => l !== null);
  // Most users of a namespace may not see the nodes, nor the charts: that is nothing wrong.
  const unseen = (l: Listing) => l.error.value?.code === 403 && (l === lists.nodes || l === lists.helmcharts);
  const health = check.state.value;
  const errors = [...all.flatMap((l) => (l.error.value && !unseen(l) ? [l.error.value.message] : [])), ...health.notices];
  const whole = all.every((l) => l.synced.value || l.error.value) && health.at > 0;
  const lost = connected.value === "lost" || connected.value === "away";
  const old = lost || all.some((l) => l.trouble.value || l.over.value) || (health.at > 0 && now.value - health.at > STALE);
  const { nodes, pods } = summary.value;
  const list = cards.value;
  // What is wrong with the servers comes first: much of the rest may follow from it.
  const ofServers = problemsOf(servers.value);
  const count = list.length + ofServers.length;
  const recent = warnings.value.filter((w) => now.value - w.at < RECENT).reduce((n, w) => n + w.count, 0);
  const verdict = (): [tone: string, text: string] => {
    if (old) return ["passing", lost ? S.connection.old(clock(since.value)) : O.old];
    if (!whole && errors.length === 0) return ["faint", S.overview.looking];
    if (recent > 0) return ["passing", O.warned(recent)];
    if (errors.length > 0) return ["", ""];
    return ["good", health.blind || all.some(unseen) ? O.nothingOfYours : O.nothing];
  };
  const [tone, text] = verdict();

  return (
    <section class="view" aria-label={S.overview.title}>
      <div class="pane scroll">
        <div class="summary" role="status">
          <h1>{count ? S.overview.problems(count) : S.overview.title}</h1>
          {nodes && (
            <a href={listHref("nodes")} class={nodes.good < nodes.all ? "bad" : old ? "" : "good"}>
              {S.overview.nodes(nodes.good, nodes.all)}
            </a>
          )}
          {pods && (
            <a href={listHref("pods")} class={pods.good < pods.all ? "passing" : old ? "" : "good"}>
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
        {(count === 0 || old) && text && <p class={tone}>{text}</p>}
        {count > 0 && (
          <section aria-label={S.overview.wrong}>
            <ul class="cards">
              {ofServers.map((p) => (
                <ServerCard key={p.title + p.text} problem={p} />
              ))}
              {list.slice(0, SHOWN).map((c, i) => (
                <OneCard key={c.id} card={c} warnings={warningsAbout(c, warnings.value)} first={i === 0} />
              ))}
            </ul>
            {list.length > SHOWN && <p class="faint">{S.overview.more(list.length - SHOWN)}</p>}
          </section>
        )}
        {lists.pods && <UseOverview pods={lists.pods} ns={ns} />}
        {servers.value && <Servers report={servers.value} />}
        {warnings.value.length > 0 && (
          <section class="related">
            <h2>{S.overview.warnings}</h2>
            <table class="plain">
              <tbody>
                {warnings.value.slice(0, 30).map((w) => (
                  <tr key={w.ns + w.object + w.reason + w.message}>
                    <td class="faint short-cell">{ago(w)}</td>
                    <td class="short-cell">{w.count > 1 && S.overview.times(w.count)}</td>
                    <td class="bad">{visible(w.reason)}</td>
                    <td>{objectLink(w)}</td>
                    <td>{visible(clean(w.message))}</td>
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

function ago(w: Warning): string {
  return S.overview.ago(duration(Math.max(0, Math.floor((now.value - w.at) / 1000))));
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

function objectLink(w: Warning) {
  const [word, name] = w.object.split("/");
  const k = kindByWord(word);
  const text = (w.ns ? w.ns + "/" : "") + w.object;
  return k && name ? <a href={hrefOf(k, { ns: k.namespaced ? w.ns : "", name })}>{visible(text)}</a> : visible(text);
}

function OneCard({ card: c, warnings, first }: { card: Card<Kind>; warnings: Warning[]; first: boolean }) {
  const object = useSignal<Record<string, any> | null>(null);
  const unfolded = useSignal(first);
  const pod = c.pods[0];
  const podKind = kindByWord("pods")!;
  const [kind, name] = pod ? [podKind, pod.row.name] : [c.kind, c.name];
  // A page that stands open for days shows the state and the log of now.
  const age = Math.floor(now.value / REREAD);
  useEffect(() => {
    if (!needsObject(c)) return;
    let closed = false;
    api<Record<string, any>>("GET", objectPath(kind, c.ns, name)).then(
      (o) => closed || (object.value = o),
      () => undefined,
    );
    return () => {
      closed = true;
    };
  }, [name, pod?.reason, pod?.row, age]);
  const sentence = sentenceOf(c, object.value, warnings);
  const containers = pod && object.value?.kind === "Pod" ? containersOf(object.value) : [];
  const lines = [...new Set(linesOf(c, object.value, containers))].filter((t) => t && t !== sentence);
  const failed = containers.find((x) => !x.ready && (x.restarts > 0 || x.last || x.tone === "bad"));
  const log = failed && (failed.restarts > 0 || /exit code/.test(failed.state)) ? failed : undefined;
  const pods = c.pods.length > 1 || (pod && c.kind.id !== podKind.id) ? c.pods : [];
  return (
    <li class={"card" + (c.passing ? " passing-card" : "")}>
      <div class="card-head">
        <strong class={c.passing ? "passing" : "bad"}>{visible(sentence)}</strong>
        <a href={hrefOf(c.kind, c)}>
          {O.podsOf(c.pods.length)}
          {c.kind.singular || c.kind.resource} {c.ns && visible(c.ns) + "/"}
          <strong>{visible(c.name)}</strong>
        </a>
        {pod && <a href={format({ view: "logs", kind: podKind.id, ns: c.ns, name })}>{S.action.logs}</a>}
      </div>
      {lines.length + warnings.length + pods.length > 0 && (
        <details open={unfolded.value} onToggle={(e) => (unfolded.value = e.currentTarget.open)}>
          <summary class="faint">{O.details}</summary>
          {pods.length > 0 && (
            <ul class="card-pods">
              {pods.slice(0, PODS).map((p) => (
                <li key={p.id}>
                  <a href={hrefOf(podKind, p.row)}>{visible(p.row.name)}</a> {visible(p.reason)}
                </li>
              ))}
              {pods.length > PODS && <li class="faint">{O.morePods(pods.length - PODS)}</li>}
            </ul>
          )}
          {lines.map((t) => (
            <div key={t}>{visible(t)}</div>
          ))}
          {warnings.slice(0, PODS).map((w) => (
            <div key={w.object + w.reason + w.message}>
              <span class="faint">{ago(w)}</span> {visible(w.reason)}: {visible(clean(w.message))}
            </div>
          ))}
          {unfolded.value && log && (
            <Log key={name + log.name + log.restarts} path={objectPath(podKind, c.ns, name) + "/log"} container={log.name} />
          )}
        </details>
      )}
    </li>
  );
}

/** linesOf is what a card's sentence leaves out. */
function linesOf(c: Card<Kind>, o: Record<string, any> | null, containers: ReturnType<typeof containersOf>): string[] {
  return [
    ...containers.filter((x) => x.tone === "bad" || x.tone === "passing").map((x) => `${x.name}: ${clean(x.state)}`),
    ...containers.filter((x) => x.last && !x.ready).map((x) => `${x.name}: ${S.object.before(clean(x.last))}`),
    ...(o ? conditionWords(o) : []),
    ...c.findings.map((f) => (f.name === c.name ? "" : f.name + ": ") + findingSentence(f)),
    ...(c.problem && c.findings.length === 0 ? [c.problem.reason] : []),
  ];
}

/** Log is the end of a container's log. The server gives the last run of one that waits to run again. */
function Log({ path, container }: { path: string; container: string }) {
  const lines = useSignal<string[]>([]);
  useEffect(() => {
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
    const stream = new Stream(request, client);
    return () => stream.close();
  }, [Math.floor(now.value / REREAD)]);
  return lines.value.length > 0 ? (
    <pre class="data" tabIndex={0} aria-label={S.overview.log}>
      {visibleLines(lines.value.join("\n"))}
    </pre>
  ) : null;
}
