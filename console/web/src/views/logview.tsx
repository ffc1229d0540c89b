// SPDX-License-Identifier: Apache-2.0

// The log of a pod, or of all pods of a workload.

import { useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { announce } from "../base/announce";
import { api, reasonOf } from "../api/client";
import { chosenContainer, logContainers } from "../model/containers";
import { Expression } from "../base/expression";
import { FilterBar, focusFilter } from "../widgets/filterbar";
import { useKeys } from "../base/keys";
import { isKind, type Kind, kindById, kindByWord, kinds, label, listPath, objectPath } from "../api/kinds";
import { Listing } from "../model/listing";
import { Log, optionsOf, SINCE } from "../model/logs";
import { LogLines, type LogScroll } from "./loglines";
import { back, format, route, setParams } from "../api/route";
import { S } from "../base/strings";
import { Empty } from "../widgets/table";
import { visible } from "../base/text";
import { selectorText } from "../model/selector";

export const COLORS = 8;
/** MAX_PODS is how many pods' logs are followed at once. */
const MAX_PODS = 40;

export function LogView() {
  const r = route.value;
  const k = kindById(r.kind);
  if (!k) return kinds.value.length ? <Empty text={S.list.noKind(r.kind)} /> : <p class="empty">{S.loading}</p>;
  return (
    <LogOf key={[k.id, r.ns, r.name, r.params.container, r.params.previous, r.params.since].join("|")} kind={k} ns={r.ns} name={r.name} />
  );
}

async function openPod(
  log: Log,
  pods: Kind,
  ns: string,
  name: string,
  wanted: string,
  color: number,
  containers: (all: string[]) => void,
): Promise<void> {
  const path = objectPath(pods, ns, name);
  const pod = await api<Record<string, any>>("GET", path);
  const all = logContainers(pod);
  containers(all);
  const chosen = wanted === "*" ? all : [chosenContainer(pod, all, wanted)];
  const over = async () => {
    try {
      const p = await api<Record<string, any>>("GET", path);
      return p.status?.phase === "Succeeded" || p.status?.phase === "Failed";
    } catch {
      return true;
    }
  };
  for (const c of chosen) log.open(name, c, path + "/log", color, over);
}

/** useLog opens the logs of a pod or a workload's pods; pods that appear later join. */
function useLog(kind: Kind, ns: string, name: string) {
  const params = route.peek().params;
  const log = useMemo(() => new Log(optionsOf(params)), []);
  const containers = useSignal<string[]>([]);
  const problem = useSignal("");
  const pods = useSignal(0);
  useEffect(() => {
    let listing: Listing | null = null;
    let stop: (() => void) | undefined;
    let closed = false;
    const podKind = kindByWord("pods");
    const see = (all: string[]) => {
      containers.value = [...new Set([...containers.value, ...all])];
    };
    const fail = (err: unknown) => {
      problem.value = reasonOf(err);
    };
    const begin = async () => {
      if (!podKind) return;
      if (isKind(kind, "", "pods")) {
        pods.value = 1;
        return openPod(log, podKind, ns, name, params.container ?? "", 0, see);
      }
      const o = await api<Record<string, any>>("GET", objectPath(kind, ns, name));
      const selector = selectorText(o.spec?.selector);
      if (!selector) throw new Error(S.logs.noSelector);
      if (closed) return;
      listing = new Listing(listPath(podKind, ns), { labelSelector: selector });
      const opened = new Set<string>();
      stop = listing.version.subscribe(() => {
        for (const row of listing!.rows.values()) {
          if (opened.has(row.uid) || opened.size >= MAX_PODS) continue;
          const color = opened.size % COLORS;
          opened.add(row.uid);
          pods.value = opened.size;
          // A pod that is gone before its log was opened is no problem of the others.
          openPod(log, podKind, ns, row.name, params.container ?? "", color, see).catch(() => undefined);
        }
        if (listing!.rows.size > MAX_PODS) problem.value = S.logs.tooMany(MAX_PODS, listing!.rows.size);
      });
    };
    begin().catch(fail);
    return () => {
      closed = true;
      stop?.();
      listing?.close();
      log.close();
    };
  }, []);
  return { log, containers, problem, pods };
}

function LogOf({ kind, ns, name }: { kind: Kind; ns: string; name: string }) {
  const { log, containers, problem, pods } = useLog(kind, ns, name);
  const following = useSignal(true);
  const wrap = useSignal(localStorage.getItem("coracle.wrap") !== "0");
  const json = useSignal(localStorage.getItem("coracle.json") === "1");
  const times = useSignal(localStorage.getItem("coracle.times") === "1");
  const scroll = useRef<LogScroll>(null);
  const params = route.value.params;
  useSignalEffect(() => localStorage.setItem("coracle.wrap", wrap.value ? "1" : "0"));
  useSignalEffect(() => localStorage.setItem("coracle.json", json.value ? "1" : "0"));
  useSignalEffect(() => localStorage.setItem("coracle.times", times.value ? "1" : "0"));
  const filter = useComputed(() => {
    const text = (route.value.params.filter ?? "").trim();
    const invert = text.startsWith("!");
    const word = invert ? text.slice(1) : text;
    return word ? { re: new Expression(word), invert } : null;
  });
  const sources = log.sources.value;
  const waiting = sources.filter((s) => s.state.value !== "open" || s.message_.value);
  const others = [
    ...new Set(
      waiting.map((s) =>
        s.state.value === "ended"
          ? s.message_.value || (sources.length === 1 ? S.logs.ended : "")
          : s.message_.value || S.logs.waiting(s.pod),
      ),
    ),
  ].filter(Boolean);

  useKeys([
    { key: "/", label: S.keys.filter, run: focusFilter, hint: true },
    { key: "f", label: S.keys.follow, run: () => (following.value = !following.value), hint: true },
    { key: "w", label: S.keys.wrap, run: () => (wrap.value = !wrap.value), hint: true },
    { key: "J", label: S.logs.json, run: () => (json.value = !json.value), hint: true },
    { key: "t", label: S.keys.times, run: () => (times.value = !times.value), hint: true },
    { key: "p", label: S.keys.previous, run: () => setParams({ previous: params.previous === "1" ? "" : "1" }), hint: true },
    { key: "c", label: S.keys.container, run: () => nextContainer(), hint: true },
    { key: "D", label: S.keys.download, run: () => download(), hint: true },
    { key: "j ArrowDown", label: S.keys.down, run: () => scroll.current?.by(1) },
    { key: "k ArrowUp", label: S.keys.up, run: () => scroll.current?.by(-1) },
    { key: "PageDown", label: S.keys.pageDown, run: () => scroll.current?.by(30) },
    { key: "PageUp", label: S.keys.pageUp, run: () => scroll.current?.by(-30) },
    { key: "g Home", label: S.keys.first, run: () => scroll.current?.by(-Infinity) },
    { key: "G End", label: S.keys.last, run: () => (following.value = true) },
    { key: "Escape", label: S.keys.back, run: () => (params.filter ? setParams({ filter: "" }) : back()), hint: true },
  ]);

  function nextContainer(): void {
    const all = ["", ...containers.value, "*"];
    setParams({ container: all[(all.indexOf(params.container ?? "") + 1) % all.length] });
  }
  function download(): void {
    const url = URL.createObjectURL(new Blob([log.text()], { type: "text/plain" }));
    const a = document.createElement("a");
    a.href = url;
    a.download = `${name}.log`;
    a.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    announce(S.logs.downloaded(log.lines.length));
  }

  return (
    <section class="view" aria-label={S.logs.title(name)}>
      <div class="bar">
        <h1>
          <span class="faint">{S.logs.of}</span>{" "}
          <a href={format({ view: "object", kind: kind.id, ns, name })}>
            <span class="faint">
              {label(kind)} {visible(ns)}/
            </span>
            <span class="name">{visible(name)}</span>
          </a>
          {pods.value > 1 && <span class="count">{S.logs.pods(pods.value)}</span>}
        </h1>
        <FilterBar placeholder={S.logs.filter} />
        <div class="tools">
          <button type="button" aria-pressed={following.value} onClick={() => (following.value = !following.value)}>
            {S.logs.follow}
          </button>
          <button type="button" aria-pressed={json.value} onClick={() => (json.value = !json.value)}>
            {S.logs.json}
          </button>
          <button type="button" aria-pressed={wrap.value} onClick={() => (wrap.value = !wrap.value)}>
            {S.logs.wrap}
          </button>
          <button type="button" aria-pressed={times.value} onClick={() => (times.value = !times.value)}>
            {S.logs.times}
          </button>
          <button
            type="button"
            aria-pressed={params.previous === "1"}
            onClick={() => setParams({ previous: params.previous === "1" ? "" : "1" })}
          >
            {S.logs.previous}
          </button>
          <label>
            <span class="hidden">{S.logs.container}</span>
            <select value={params.container ?? ""} onChange={(e) => setParams({ container: e.currentTarget.value })}>
              <option value="">{S.logs.defaultContainer}</option>
              {containers.value.map((c) => (
                <option key={c} value={c}>
                  {visible(c)}
                </option>
              ))}
              <option value="*">{S.logs.allContainers}</option>
            </select>
          </label>
          <label>
            <span class="hidden">{S.logs.since}</span>
            <select value={params.since ?? ""} onChange={(e) => setParams({ since: e.currentTarget.value })}>
              {SINCE.map(([v, text]) => (
                <option key={v} value={v}>
                  {text}
                </option>
              ))}
            </select>
          </label>
          <button type="button" onClick={download}>
            {S.logs.download}
          </button>
        </div>
      </div>
      {problem.value && (
        <p class="note passing" role="status">
          {visible(problem.value)}
        </p>
      )}
      {others.slice(0, 3).map((text) => (
        <p key={text} class="note" role="status">
          {visible(text)}
        </p>
      ))}
      <LogLines
        log={log}
        filter={filter}
        following={following}
        wrap={wrap}
        times={times}
        json={json}
        named={sources.length > 1}
        scroll={scroll}
      />
    </section>
  );
}
