// SPDX-License-Identifier: Apache-2.0

// What a pod or a node uses: measured while the page is open, or the last hour or day where the servers keep a history.
// Nothing is shown where the cluster has no metrics.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { api } from "../api/client";
import { kindById, kinds, objectPath } from "../api/kinds";
import { useKeys } from "../base/keys";
import { M } from "../base/morestrings";
import { quantity } from "../base/quantity";
import { route } from "../api/route";
import { S } from "../base/strings";
import { visible } from "../base/text";
import { theme } from "../base/theme";
import { type History, type Line, linesOf, type Point, pointsOf, topOf } from "../model/history";

const PERIOD = 15_000;
const POINTS = 240;
const HEIGHT = 120;
const HISTORY_PERIOD = 60_000;

interface Metrics {
  timestamp?: string;
  usage?: Record<string, string>;
  containers?: { usage: Record<string, string> }[];
}

function pointOf(m: Metrics): Point {
  const all = m.usage ? [m.usage] : (m.containers ?? []).map((c) => c.usage);
  const sum = (what: string) => all.reduce((n, u) => n + (quantity(u[what]) || 0), 0);
  return { at: Date.parse(m.timestamp ?? "") / 1000 || Date.now() / 1000, cpu: sum("cpu") * 1000, memory: sum("memory") / 2 ** 20 };
}

/** every calls f now and then again after each period, until its end is called. A page in the background waits. */
function every(period: number, f: (closed: () => boolean) => Promise<void>): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let closed = false;
  const run = async () => {
    if (!document.hidden) await f(() => closed);
    if (!closed) timer = setTimeout(run, period);
  };
  void run();
  return () => {
    closed = true;
    clearTimeout(timer);
  };
}

type Range = "now" | "hour" | "day";
const RANGES: Range[] = ["now", "hour", "day"];
const MINUTES = { hour: 60, day: 1440 };

export function Usage({ object }: { object: Record<string, any> }) {
  const points = useSignal<Point[]>([]);
  const history = useSignal<History | null>(null);
  const range = useSignal<Range>("hour");
  const r = useRef(route.peek()).current;
  const of = kindById(r.kind);
  const metrics = of && kinds.value.find((k) => k.group === "metrics.k8s.io" && k.resource === of.resource);
  useEffect(() => {
    if (!metrics) return;
    const path = objectPath(metrics, r.ns, r.name);
    return every(PERIOD, async (closed) => {
      try {
        const p = pointOf(await api<Metrics>("GET", path));
        if (!closed() && p.at !== points.value.at(-1)?.at) points.value = [...points.value, p].slice(-POINTS);
      } catch {
        // A pod that has just begun has no metrics yet.
      }
    });
  }, [metrics?.id]);
  useEffect(() => {
    if (!metrics || range.value === "now") return;
    const name = encodeURIComponent(r.name);
    const whose = r.ns ? `namespace=${encodeURIComponent(r.ns)}&pod=${name}` : `node=${name}`;
    const path = `/coracle/metrics-history?${whose}&minutes=${MINUTES[range.value]}`;
    return every(HISTORY_PERIOD, async (closed) => {
      try {
        const h = await api<History>("GET", path);
        if (!closed()) history.value = h;
      } catch {
        // Another cluster's API server keeps none, and while no server leads there is none.
      }
    });
  }, [metrics?.id, range.value]);
  const kept = history.value?.enabled ? history.value : null;
  useKeys([
    {
      key: "h",
      label: M.history.key,
      run: () => {
        if (history.value?.enabled) range.value = RANGES[(RANGES.indexOf(range.value) + 1) % RANGES.length];
      },
    },
  ]);
  if (!metrics) return null;
  const past = kept && range.value !== "now";
  const shown = past ? pointsOf(kept) : points.value;
  const last = points.value.at(-1) ?? shown.findLast((p) => p.cpu !== null);
  if (!last) return null;
  const lines = { cpu: linesOf(object, "cpu"), memory: linesOf(object, "memory") };
  const label = (text: (n: number) => string, now: number | null, of: Line[]) =>
    [text(now ?? 0), ...of.map((l) => M.history.line[l.what] + " " + text(l.value).replace(/^.*: /, ""))].join(", ");
  return (
    <section class="related usage">
      <h2>{past ? M.history.title[range.value as "hour" | "day"] : S.usage.title}</h2>
      {kept && (
        <div class="tools" role="group" aria-label={M.history.key}>
          {RANGES.map((one) => (
            <button key={one} type="button" aria-pressed={one === range.value} onClick={() => (range.value = one)}>
              {M.history.range[one]}
            </button>
          ))}
        </div>
      )}
      <div class="charts">
        <Chart key="cpu" label={label(S.usage.cpu, last.cpu, lines.cpu)} points={shown} of="cpu" lines={lines.cpu} color="--c0" />
        <Chart
          key="memory"
          label={label(S.usage.memory, last.memory, lines.memory)}
          points={shown}
          of="memory"
          lines={lines.memory}
          color="--c2"
        />
      </div>
      {history.value && !kept && <p class="faint">{M.history.off(visible(history.value.server))}</p>}
      {past && kept.since && <p class="faint">{M.history.since(visible(kept.server), new Date(kept.since).toLocaleString())}</p>}
      {past && kept.curves.length > 1 && <p class="faint">{M.history.earlier}</p>}
    </section>
  );
}

const LINE_COLOR = { request: "--passing", limit: "--bad", allocatable: "--bad" };

interface ChartProps {
  label: string;
  points: Point[];
  of: "cpu" | "memory";
  lines: Line[];
  color: string;
}

function Chart({ label, points, of, lines, color }: ChartProps) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const values = points.map((p) => p[of]);
  const data: uPlot.AlignedData = [points.map((p) => p.at), values, ...lines.map((l) => points.map(() => l.value))];
  const top = useRef(1);
  top.current = topOf(values, lines);
  const enough = points.length > 1;
  const kinds = lines.map((l) => l.what).join();
  useEffect(() => {
    const el = box.current;
    if (!el || !enough) return;
    // A canvas knows no custom properties: the colours are those that they stand for now.
    const probe = document.createElement("span");
    el.append(probe);
    const colorOf = (name: string) => {
      probe.style.color = `var(${name})`;
      return getComputedStyle(probe).color;
    };
    const axis = {
      stroke: colorOf("--faint"),
      grid: { stroke: colorOf("--line-color"), width: 1 },
      ticks: { stroke: colorOf("--line-color"), width: 1 },
    };
    const stroke = colorOf(color);
    const compared = lines.map((l) => ({
      stroke: colorOf(LINE_COLOR[l.what]),
      width: 1,
      dash: l.what === "request" ? [6, 4] : [],
      points: { show: false },
    }));
    probe.remove();
    plot.current = new uPlot(
      {
        width: el.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        scales: { y: { range: () => [0, top.current] } },
        axes: [
          { ...axis, space: 90, values: (_u, at) => at.map((t) => new Date(t * 1000).toTimeString().slice(0, 8)) },
          { ...axis, size: 48 },
        ],
        series: [{}, { stroke, width: 2, points: { show: false } }, ...compared],
      },
      data,
      el,
    );
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: el.clientWidth, height: HEIGHT }));
    resized.observe(el);
    return () => {
      resized.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [enough, kinds, theme.value]);
  useEffect(() => plot.current?.setData(data), [points, top.current]);
  return (
    <div class="chart">
      <p>{label}</p>
      <div ref={box} aria-hidden="true" />
    </div>
  );
}
