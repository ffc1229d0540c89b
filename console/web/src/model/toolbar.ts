// SPDX-License-Identifier: Apache-2.0

// Which actions fit an object's state: those are buttons, the others are in a menu.

import type { Kind } from "../api/kinds";

/** State is what is known of an object without asking: a word for its state, and whether containers have restarted. */
export interface State {
  word: string;
  restarted: boolean;
}

/** FIT are ids of actions by a kind's resource, of most use first. What does not apply is left out. */
const FIT: Record<string, string[]> = {
  pods: ["logs", "shell", "forward"],
  deployments: ["logs", "scale", "restart"],
  statefulsets: ["logs", "scale", "restart"],
  daemonsets: ["logs", "restart", "edit"],
  cronjobs: ["run", "pause", "edit"],
  nodes: ["cordon", "drain"],
  services: ["forward", "map", "edit"],
};

/** MANY are those that can be done with several objects at once. */
const MANY = ["restart", "scale", "logs", "run", "pause", "cordon"];

const CRASHED = /^(CrashLoopBackOff|Error|OOMKilled|ContainerCannotRun|StartError|Init:(CrashLoopBackOff|Error|OOMKilled))$/;
const NOT_STARTED =
  /^(Pending|SchedulingGated|ContainerCreating|PodInitializing|(Init:)?(Err)?ImagePull.*|(Init:)?.*Config.*Error|(Init:)?Err.*|(Init:)?InvalidImageName)$/;

function wanted(k: Pick<Kind, "group" | "resource">, s: State | null, several: boolean): string[] {
  if (several) return MANY;
  if (k.resource === "pods" && s) {
    if (CRASHED.test(s.word)) return s.restarted || s.word.includes("Crash") ? ["previous", "logs", "debug"] : ["logs", "events", "edit"];
    if (NOT_STARTED.test(s.word)) return ["events", "edit"];
    if (/^(Completed|Succeeded|Failed)$/.test(s.word)) return ["logs", "events"];
  }
  const part = /^(\d+)\/(\d+)$/.exec(s?.word ?? "");
  if (k.group === "apps" && part && part[1] !== part[2]) return ["logs", "events", "undo"];
  return FIT[k.resource] ?? ["edit", "events"];
}

/** fitting gives the ids of at most three actions that fit, among those that there are. */
export function fitting(k: Pick<Kind, "group" | "resource">, state: State | null, several: boolean, there: string[]): string[] {
  return wanted(k, state, several)
    .filter((id) => there.includes(id))
    .slice(0, 3);
}

/** stateOfRow reads the state from the cells of the server's table. */
export function stateOfRow(cell: (column: string) => string): State {
  return { word: cell("Status") || cell("Ready"), restarted: parseInt(cell("Restarts")) > 0 };
}

/** stateOfObject reads the same from the object. */
export function stateOfObject(o: Record<string, any>): State {
  const s = o.status ?? {};
  const containers: Record<string, any>[] = [...(s.initContainerStatuses ?? []), ...(s.containerStatuses ?? [])];
  const reasons = containers.map((c) => c.state?.waiting?.reason ?? c.state?.terminated?.reason);
  const wanted = o.spec?.replicas ?? s.desiredNumberScheduled;
  const parts = wanted === undefined ? "" : `${s.readyReplicas ?? s.numberReady ?? 0}/${wanted}`;
  return {
    word: String(reasons.find((r) => r && r !== "Completed") ?? s.reason ?? s.phase ?? parts),
    restarted: containers.some((c) => c.restartCount > 0),
  };
}
