// SPDX-License-Identifier: Apache-2.0

// The log of a pod, or of all pods of a workload.

import { untracked, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { announce } from "../base/announce";
import { Expression } from "../base/expression";
import { FilterBar, focusFilter } from "../widgets/filterbar";
import { useKeys } from "../base/keys";
import { type Kind, kindById, kinds, label } from "../api/kinds";
import { optionsOf, SINCE } from "../model/logs";
import { PodLogs, waitingTexts } from "../model/podlogs";
import { LogLines, type LogScroll } from "./loglines";
import { back, format, route, setParams } from "../api/route";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { Empty } from "../widgets/table";
import { visible } from "../base/text";

export function LogView() {
  const r = route.value;
  const k = kindById(r.kind);
  if (!k) return kinds.value.length ? <Empty text={S.list.noKind(r.kind)} /> : <p class="empty">{S.loading}</p>;
  return <LogOf key={[k.id, r.ns, r.name, r.params.previous, r.params.since].join("|")} kind={k} ns={r.ns} name={r.name} />;
}

/** useLogs reads the logs of a pod or a workload's pods while the view is shown. */
function useLogs(kind: Kind, ns: string, name: string): PodLogs {
  const logs = useMemo(() => {
    const params = route.peek().params;
    return new PodLogs({ kind, ns, name }, optionsOf(params), params.container ?? "");
  }, []);
  useEffect(() => () => logs.close(), []);
  useSignalEffect(() => {
    const { view, params } = route.value;
    if (view === "logs") untracked(() => logs.choose(params.container ?? ""));
  });
  return logs;
}

function LogOf({ kind, ns, name }: { kind: Kind; ns: string; name: string }) {
  const logs = useLogs(kind, ns, name);
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
  const filter = useComputed(() => {
    const text = (route.value.params.filter ?? "").trim();
    const invert = text.startsWith("!");
    const word = invert ? text.slice(1) : text;
    return word ? { re: new Expression(word), invert } : null;
  });
  const waiting = logs.empty.value ? [M.logs.noPods] : waitingTexts(log);

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
      {waiting.slice(0, 5).map((text) => (
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
        quiet={waiting.length > 0}
        scroll={scroll}
      />
    </section>
  );
}
