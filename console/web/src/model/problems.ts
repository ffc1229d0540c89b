// SPDX-License-Identifier: Apache-2.0

// What is wrong in a cluster, from the server's tables of pods, nodes, claims and workloads.

import type { Row } from "../api/connection";
import type { Listing } from "./listing";
import { receivedAt } from "./listing";
import { S } from "../base/strings";
import { seconds } from "../base/text";
import { toneOfStatus } from "../base/tones";

export interface Problem {
  id: string;
  word: string;
  row: Row;
  /** reason is the server's word for it. */
  reason: string;
  /** passing problems may end by themselves. */
  passing: boolean;
}

export interface Warning {
  ns: string;
  object: string;
  reason: string;
  message: string;
  /** at is when it was seen last, in milliseconds. */
  at: number;
  count: number;
}

/** PATIENCE is how long a new pod may take, and how long one that is being deleted, in milliseconds. */
const PATIENCE = 60_000;
const DELETING_PATIENCE = 120_000;

/** columnOf gives the index of a column; -1 while the columns are not known. */
export function columnOf(l: Listing, name: string): number {
  return l.columns.value.findIndex((c) => c.name === name);
}

function cell(row: Row, at: number): string {
  return at < 0 ? "" : String(row.cells[at] ?? "");
}

export function podProblems(pods: Listing, now: number): Problem[] {
  const status = columnOf(pods, "Status");
  const ready = columnOf(pods, "Ready");
  const out: Problem[] = [];
  for (const row of pods.rows.values()) {
    const text = cell(row, status);
    const tone = toneOfStatus(text);
    const young = now - Date.parse(row.created) < PATIENCE;
    const add = (reason: string, passing: boolean) => out.push({ id: row.uid, word: "pods", row, reason, passing });
    if (row.deleting) {
      if (now - Date.parse(row.deleting) > DELETING_PATIENCE) add(text || "Terminating", true);
    } else if (tone === "bad") {
      add(text, false);
    } else if (tone === "passing") {
      if (!young) add(text, true);
    } else if (text === "Running") {
      const [have, want] = cell(row, ready).split("/");
      if (have !== want && !young) add("NotReady " + cell(row, ready), true);
    }
  }
  return out;
}

export function nodeProblems(nodes: Listing): Problem[] {
  const status = columnOf(nodes, "Status");
  const out: Problem[] = [];
  for (const row of nodes.rows.values()) {
    const text = cell(row, status);
    if (text && !/^Ready(,|$)/.test(text)) out.push({ id: row.uid, word: "nodes", row, reason: text, passing: false });
    else if (text.includes("SchedulingDisabled")) out.push({ id: row.uid, word: "nodes", row, reason: text, passing: true });
  }
  return out;
}

export function claimProblems(claims: Listing, now: number): Problem[] {
  const status = columnOf(claims, "Status");
  const out: Problem[] = [];
  for (const row of claims.rows.values()) {
    const text = cell(row, status);
    if (!text || text === "Bound" || (now - Date.parse(row.created) < PATIENCE && text === "Pending")) continue;
    out.push({ id: row.uid, word: "persistentvolumeclaims", row, reason: text, passing: text === "Pending" });
  }
  return out;
}

/** chartProblems are HelmCharts that are not installed as they say: those of Coracle and of k3s have the same words. */
export function chartProblems(charts: Listing, now: number): Problem[] {
  const [ready, failed, reason] = ["Ready", "Failed", "Reason"].map((n) => columnOf(charts, n));
  const out: Problem[] = [];
  for (const row of charts.rows.values()) {
    const final = cell(row, failed) === "True";
    if (!final && (cell(row, ready) !== "False" || now - Date.parse(row.created) < PATIENCE)) continue;
    out.push({ id: row.uid, word: "helmcharts", row, reason: cell(row, reason) || S.overview.chartFailed, passing: !final });
  }
  return out;
}

/** workloadProblems are workloads without enough pods of which no pod tells why. */
export function workloadProblems(word: string, workloads: Listing, pods: Problem[], now: number): Problem[] {
  const ready = columnOf(workloads, "Ready");
  const out: Problem[] = [];
  for (const row of workloads.rows.values()) {
    const [have, want] = cell(row, ready).split("/").map(Number);
    if (!(have < want) || now - Date.parse(row.created) < PATIENCE) continue;
    if (pods.some((p) => p.row.ns === row.ns && p.row.name.startsWith(row.name + "-"))) continue;
    out.push({ id: row.uid, word, row, reason: cell(row, ready), passing: true });
  }
  return out;
}

/** warningsOf merges the events of one object that say the same. The newest are first. */
export function warningsOf(events: Listing): Warning[] {
  const at = Object.fromEntries(["Last Seen", "Type", "Reason", "Object", "Message", "Count"].map((n) => [n, columnOf(events, n)]));
  const merged = new Map<string, Warning>();
  for (const row of events.rows.values()) {
    if (cell(row, at.Type) === "Normal") continue;
    const w: Warning = {
      ns: row.ns,
      object: cell(row, at.Object),
      reason: cell(row, at.Reason),
      message: cell(row, at.Message),
      at: receivedAt(row) - (seconds(cell(row, at["Last Seen"])) || 0) * 1000,
      count: Number(cell(row, at.Count)) || 1,
    };
    const key = [w.ns, w.object, w.reason].join("\n");
    const other = merged.get(key);
    if (!other) merged.set(key, w);
    else merged.set(key, { ...(w.at > other.at ? w : other), count: w.count + other.count });
  }
  return [...merged.values()].sort((a, b) => b.at - a.at);
}
