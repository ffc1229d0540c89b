// SPDX-License-Identifier: Apache-2.0

// The curves of what a pod or node uses: points, and the lines of what was asked for and of what is allowed.

import { quantity } from "../base/quantity";

/** History is what the API server says at /coracle/metrics-history. */
export interface History {
  enabled: boolean;
  server: string;
  since?: string;
  /** period is in seconds. */
  period: number;
  curves: { uid: string; start: string; cpu: (number | null)[]; memory: (number | null)[] }[];
}

/** Point is at a time in seconds. CPU is in thousandths of a core, memory in MiB; null is a gap. */
export interface Point {
  at: number;
  cpu: number | null;
  memory: number | null;
}

/** pointsOf is the curves one after the other, with a gap between two. */
export function pointsOf(h: History): Point[] {
  const out: Point[] = [];
  for (const c of h.curves) {
    const start = Date.parse(c.start) / 1000;
    const last = out.at(-1);
    if (last) out.push({ at: (last.at + Math.max(start, last.at)) / 2, cpu: null, memory: null });
    c.cpu.forEach((cpu, i) => {
      const memory = c.memory[i];
      out.push({ at: start + i * h.period, cpu, memory: memory === null ? null : memory / 2 ** 20 });
    });
  }
  return out.sort((a, b) => a.at - b.at);
}

/** Line is a number that the use is compared with, in the unit of the points. */
export interface Line {
  what: "request" | "limit" | "allocatable";
  value: number;
}

/**
 * linesOf is what an object asks for and may use of a resource. A pod has a limit only when each container has one. The
 * sidecars among the init containers count, the others have ended.
 */
export function linesOf(object: Record<string, any>, resource: "cpu" | "memory"): Line[] {
  const scaled = (text: string | undefined) => quantity(text) * (resource === "cpu" ? 1000 : 2 ** -20);
  const allocatable = object.status?.allocatable?.[resource];
  if (allocatable) return [{ what: "allocatable", value: scaled(allocatable) }];
  const containers: any[] = [
    ...(object.spec?.containers ?? []),
    ...(object.spec?.initContainers ?? []).filter((c: any) => c.restartPolicy === "Always"),
  ];
  const all = (what: "requests" | "limits") => containers.map((c) => scaled(c.resources?.[what]?.[resource]));
  const sum = (numbers: number[]) => numbers.reduce((a, b) => a + b, 0);
  const out: Line[] = [];
  const requests = sum(all("requests").filter((n) => n > 0));
  if (requests > 0) out.push({ what: "request", value: requests });
  const limits = sum(all("limits"));
  if (limits > 0) out.push({ what: "limit", value: limits });
  return out;
}

/**
 * topOf is the upper end of a chart. A line far above all points is left out of the view: the curve would be a flat
 * one.
 */
export function topOf(values: (number | null)[], lines: Line[]): number {
  const most = values.reduce<number>((a, b) => Math.max(a, b ?? 0), 0);
  const near = lines.map((l) => l.value).filter((v) => v <= most * 8);
  return Math.max(1, most * 1.2, ...near.map((v) => v * 1.05));
}
