// SPDX-License-Identifier: Apache-2.0

// What is wrong in a cluster, from the server's tables of pods, nodes, claims and workloads.

import type { Row } from "../api/connection";
import type { Problem } from "./cards";
import type { Listing } from "./listing";
import { receivedAt } from "./listing";
import { mergeWarnings, type Warning } from "./sentences";
import { S } from "../base/strings";
import { seconds } from "../base/text";
import { toneOfStatus } from "../base/tones";

/** PATIENCE is how long a new pod may take, and how long one that is being deleted, in milliseconds. */
const PATIENCE = 60_000;
const DELETING_PATIENCE = 120_000;

/** RESTARTS within RESTARTING milliseconds since the last one are a pod's that runs only now and then. */
const RESTARTS = 3;
const RESTARTING = 600_000;

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
  const restarts = columnOf(pods, "Restarts");
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
      const again = /^(\d+) \((\S+) ago\)$/.exec(cell(row, restarts));
      const since = again ? now - receivedAt(row) + seconds(again[2]) * 1000 : Infinity;
      if (again && Number(again[1]) >= RESTARTS && since < RESTARTING) add(S.overview.restarts(Number(again[1])), have !== want);
      else if (have !== want && !young) add("NotReady " + cell(row, ready), true);
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

/** workloadProblems are workloads without enough pods. */
export function workloadProblems(word: string, workloads: Listing, now: number): Problem[] {
  const ready = columnOf(workloads, "Ready");
  const out: Problem[] = [];
  for (const row of workloads.rows.values()) {
    const [have, want] = cell(row, ready).split("/").map(Number);
    if (!(have < want) || now - Date.parse(row.created) < PATIENCE) continue;
    out.push({ id: row.uid, word, row, reason: S.overview.ready(cell(row, ready)), passing: have > 0 });
  }
  return out;
}

/** warningsOf are the warnings of a list of events; those of one object that say the same are one. */
export function warningsOf(events: Listing): Warning[] {
  const names = ["Last Seen", "Type", "Reason", "Object", "Message", "Count", "Subobject"];
  const at = Object.fromEntries(names.map((n) => [n, columnOf(events, n)]));
  const out: Warning[] = [];
  for (const row of events.rows.values()) {
    if (cell(row, at.Type) === "Normal") continue;
    out.push({
      ns: row.ns,
      object: cell(row, at.Object),
      reason: cell(row, at.Reason),
      message: cell(row, at.Message),
      at: receivedAt(row) - (seconds(cell(row, at["Last Seen"])) || 0) * 1000,
      count: Number(cell(row, at.Count)) || 1,
      part: cell(row, at.Subobject),
    });
  }
  return mergeWarnings(out);
}
