// SPDX-License-Identifier: Apache-2.0

// What a pod or a node uses, measured while the page is open. Nothing is shown where the cluster has no metrics.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { api } from "../api/client";
import { kindById, kinds, objectPath } from "../api/kinds";
import { quantity } from "../base/quantity";
import { route } from "../api/route";
import { S } from "../base/strings";
import { theme } from "../base/theme";

const PERIOD = 15_000;
const POINTS = 240;
const HEIGHT = 120;

interface Metrics {
  timestamp?: string;
  usage?: Record<string, string>;
  containers?: { usage: Record<string, string> }[];
}

interface Point {
  at: number;
  /** cpu is in thousandths of a core, memory in MiB. */
  cpu: number;
  memory: number;
}

function pointOf(m: Metrics): Point {
  const all = m.usage ? [m.usage] : (m.containers ?? []).map((c) => c.usage);
  const sum = (what: string) => all.reduce((n, u) => n + (quantity(u[what]) || 0), 0);
  return { at: Date.parse(m.timestamp ?? "") / 1000 || Date.now() / 1000, cpu: sum("cpu") * 1000, memory: sum("memory") / 2 ** 20 };
}

export function Usage() {
  const points = useSignal<Point[]>([]);
  const r = useRef(route.peek()).current;
  const of = kindById(r.kind);
  const metrics = of && kinds.value.find((k) => k.group === "metrics.k8s.io" && k.resource === of.resource);
  useEffect(() => {
    if (!metrics) return;
    const path = objectPath(metrics, r.ns, r.name);
    let timer: ReturnType<typeof setTimeout> | undefined;
    let closed = false;
    const measure = async () => {
      try {
        if (!document.hidden) {
          const p = pointOf(await api<Metrics>("GET", path));
          if (closed) return;
          if (p.at !== points.value.at(-1)?.at) points.value = [...points.value, p].slice(-POINTS);
        }
      } catch {
        // A pod that has just begun has no metrics yet.
      }
      if (!closed) timer = setTimeout(measure, PERIOD);
    };
    void measure();
    return () => {
      closed = true;
      clearTimeout(timer);
    };
  }, [metrics?.id]);
  const last = points.value.at(-1);
  if (!last) return null;
  return (
    <section class="related">
      <h2>{S.usage.title}</h2>
      <div class="charts">
        <Chart key="cpu" label={S.usage.cpu(last.cpu)} points={points.value} value={(p) => p.cpu} color="--c0" />
        <Chart key="memory" label={S.usage.memory(last.memory)} points={points.value} value={(p) => p.memory} color="--c2" />
      </div>
    </section>
  );
}

function Chart({ label, points, value, color }: { label: string; points: Point[]; value: (p: Point) => number; color: string }) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const data: uPlot.AlignedData = [points.map((p) => p.at), points.map(value)];
  const enough = points.length > 1;
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
    probe.remove();
    plot.current = new uPlot(
      {
        width: el.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        scales: { y: { range: (_u, _min, max) => [0, Math.max(1, max * 1.2)] } },
        axes: [
          { ...axis, space: 90, values: (_u, at) => at.map((t) => new Date(t * 1000).toTimeString().slice(0, 8)) },
          { ...axis, size: 48 },
        ],
        series: [{}, { stroke, width: 2, points: { show: false } }],
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
  }, [enough, theme.value]);
  useEffect(() => plot.current?.setData(data), [points]);
  return (
    <div class="chart">
      <p>{label}</p>
      <div ref={box} aria-hidden="true" />
    </div>
  );
}
