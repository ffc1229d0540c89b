// SPDX-License-Identifier: Apache-2.0

// The log of a pod, or of all pods of a workload.

import { untracked, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { announce } from "../base/announce";
import { DEBUG, ERROR, INFO, WARNING } from "../base/loglevel";
import { Expression } from "../base/expression";
import { FilterBar, focusFilter } from "../widgets/filterbar";
import { useKeys } from "../base/keys";
import { type Kind, kindById, kinds, label } from "../api/kinds";
import { optionsOf, SINCE } from "../model/logs";
import { MAX_LOGS } from "../model/target";
import { type Place, PodLogs, waitingTexts } from "../model/podlogs";
import { type Found, LogLines, type LogScroll, type Wanted } from "./loglines";
import { back, format, route, setParams } from "../api/route";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { Empty } from "../widgets/table";
import { visible } from "../base/text";

export function LogView() {
  const r = route.value;
  const k = kindById(r.kind);
  if (!k) return kinds.value.length ? <Empty text={S.list.noKind(r.kind)} /> : <p class="empty">{S.loading}</p>;
  return <LogOf key={[k.id, r.ns, r.name, r.params.more, r.params.previous, r.params.since].join("|")} kind={k} />;
}

/** placesOf are the objects of the address: the one that it names, and those that were marked with it. */
function placesOf(kind: Kind): Place[] {
  const { ns, name, params } = route.peek();
  const more = (params.more ?? "").split(",").filter(Boolean);
  const rest = more.slice(0, MAX_LOGS - 1).map((text) => {
    const [first, second] = text.split("/");
    return second === undefined ? { kind, ns, name: first } : { kind, ns: first, name: second };
  });
  return [{ kind, ns, name }, ...rest];
}

/** useLogs reads the logs of pods or workloads' pods while the view is shown. */
function useLogs(kind: Kind): PodLogs {
  const logs = useMemo(() => {
    const { params } = route.peek();
    return new PodLogs(placesOf(kind), optionsOf(params), params.container ?? "");
  }, []);
  useEffect(() => () => logs.close(), []);
  useSignalEffect(() => {
    const { view, params } = route.value;
    if (view === "logs") untracked(() => logs.choose(params.container ?? ""));
  });
  return logs;
}

const LEVELS: Record<string, number> = { error: ERROR, warning: WARNING, info: INFO };

function LogOf({ kind }: { kind: Kind }) {
  const { ns, name } = route.value;
  const logs = useLogs(kind);
  const { log, containers, problem, pods } = logs;
  const following = useSignal(true);
  const wrap = useSignal(localStorage.getItem("coracle.wrap") !== "0");
  const json = useSignal(localStorage.getItem("coracle.json") === "1");
  const times = useSignal(localStorage.getItem("coracle.times") === "1");
  const scroll = useRef<LogScroll>(null);
  const params = route.value.params;
  useSignalEffect(() => localStorage.setItem("coracle.wrap", wrap.value ? "1" : "0"));
  useSignalEffect(() => localStorage.setItem("coracle.json", json.value ? "1" : "0"));
  useSignalEffect(() => localStorage.setItem("coracle.times", times.value ? "1" : "0"));
  const found = useSignal<Found>({ at: 0, count: 0 });
  const wanted = useComputed<Wanted>(() => {
    const { filter = "", find, level = "" } = route.value.params;
    const text = filter.trim();
    const invert = text.startsWith("!");
    const word = invert ? text.slice(1) : text;
    return { re: word ? new Expression(word) : null, invert, only: find !== "1", level: LEVELS[level] ?? DEBUG };
  });
  const jobs = logs.jobs.value;
  const waiting = jobs?.length === 0 ? [M.logs.noJobs] : logs.empty.value ? [M.logs.noPods] : waitingTexts(log);
  const marked = Number(params.marked) || 0;
  const looking = wanted.value.re !== null;

  useKeys([
    { key: "/", label: S.keys.filter, run: focusFilter, hint: true },
    { key: "n", label: M.logs.next, run: () => find(1), hint: true },
    { key: "N", label: M.logs.before, run: () => find(-1) },
    { key: "&", label: M.logs.only, run: toggleOnly, hint: true },
    { key: "L", label: M.logs.nextLevel, run: nextLevel, hint: true },
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
    { key: "Escape", label: S.keys.back, run: () => (params.filter ? setParams({ filter: "", find: "" }) : back()), hint: true },
  ]);

  function nextContainer(): void {
    const all = ["", ...containers.value, "*"];
    // The address of now: a key may come before the page is drawn anew.
    setParams({ container: all[(all.indexOf(route.peek().params.container ?? "") + 1) % all.length] });
  }
  function nextLevel(): void {
    const all = ["", ...Object.keys(LEVELS)];
    setParams({ level: all[(all.indexOf(route.peek().params.level ?? "") + 1) % all.length] });
  }
  function toggleOnly(): void {
    if (!looking) return;
    setParams({ find: route.peek().params.find === "1" ? "" : "1" });
    // The match that was gone to stays in sight.
    if (found.value.at > 0) scroll.current?.find(0);
  }
  /** find goes to a line that matches, among the lines around it. */
  function find(step: number): void {
    if (!looking) return;
    setParams({ find: "1" });
    scroll.current?.find(step);
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
          {logs.of.length > 1 && <span class="count">{M.logs.more(logs.of.length - 1)}</span>}
          {pods.value > 1 && <span class="count">{S.logs.pods(pods.value)}</span>}
        </h1>
        <FilterBar placeholder={S.logs.filter} />
        {looking && (
          <div class="find">
            <span class="faint">{M.logs.found(found.value.at, found.value.count)}</span>
            <button type="button" aria-label={M.logs.before} title={M.logs.before} onClick={() => find(-1)}>
              ↑
            </button>
            <button type="button" aria-label={M.logs.next} title={M.logs.next} onClick={() => find(1)}>
              ↓
            </button>
            <button type="button" aria-pressed={wanted.value.only} onClick={toggleOnly}>
              {M.logs.only}
            </button>
          </div>
        )}
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
            <span class="hidden">{M.logs.level}</span>
            <select value={params.level ?? ""} onChange={(e) => setParams({ level: e.currentTarget.value })}>
              {Object.entries(M.logs.levels).map(([v, text]) => (
                <option key={v} value={v}>
                  {text}
                </option>
              ))}
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
      {marked > logs.of.length && (
        <p class="note passing" role="status">
          {M.logs.cut(logs.of.length, marked)}
        </p>
      )}
      {jobs && jobs.length > 0 && <p class="note">{visible(M.logs.jobs(jobs[0], jobs.slice(1)))}</p>}
      {waiting.slice(0, 5).map((text) => (
        <p key={text} class="note" role="status">
          {visible(text)}
        </p>
      ))}
      <LogLines
        log={log}
        wanted={wanted}
        found={found}
        job={jobs?.[0] ?? ""}
        following={following}
        wrap={wrap}
        times={times}
        json={json}
        quiet={waiting.length > 0}
        scroll={scroll}
      />
    </section>
  );
}
