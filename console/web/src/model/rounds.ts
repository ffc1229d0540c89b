// SPDX-License-Identifier: Apache-2.0

// Which kinds of custom objects a round of the check reads. A kind shows only by its objects whether it has the
// condition Ready, and a cluster may have a thousand kinds.

import type { CheckedKind } from "../api/health";

/** MOST is how many kinds of custom objects a round reads. */
export const MOST = 50;

/** AGAIN is after how many milliseconds a kind without the condition is looked at again. */
const AGAIN = 600_000;

interface Seen {
  at: number;
  state: "ready" | "empty" | "other";
}

/** BUILT_IN are the groups of Kubernetes itself; those without a dot are, too. */
const BUILT_IN = new Set(
  [
    "admissionregistration",
    "apiextensions",
    "apiregistration",
    "authentication",
    "authorization",
    "certificates",
    "coordination",
    "discovery",
    "events",
    "flowcontrol.apiserver",
    "internal.apiserver",
    "metrics",
    "custom.metrics",
    "external.metrics",
    "networking",
    "node",
    "rbac.authorization",
    "resource",
    "scheduling",
    "storage",
    "storagemigration",
  ].map((g) => g + ".k8s.io"),
);

/** CHECKED are Kubernetes' own kinds that the check knows, and those that have rules of their own. */
export const CHECKED = new Set([
  "nodes.",
  "persistentvolumes.",
  "namespaces.",
  "replicationcontrollers.",
  "services.",
  "endpointslices.discovery.k8s.io",
  "deployments.apps",
  "statefulsets.apps",
  "replicasets.apps",
  "daemonsets.apps",
  "jobs.batch",
  "horizontalpodautoscalers.autoscaling",
  "poddisruptionbudgets.policy",
  "ingresses.networking.k8s.io",
  "apiservices.apiregistration.k8s.io",
  "mutatingwebhookconfigurations.admissionregistration.k8s.io",
  "validatingwebhookconfigurations.admissionregistration.k8s.io",
]);

/** isCustom is whether a group's kinds are custom objects. */
export function isCustom(group: string): boolean {
  return group.includes(".") && !BUILT_IN.has(group);
}

export class Rounds {
  private seen = new Map<string, Seen>();

  /** plan chooses from the paths of the lists of custom kinds: those with the condition first, then what was not read longest. */
  plan(paths: string[], now: number): string[] {
    for (const path of this.seen.keys()) if (!paths.includes(path)) this.seen.delete(path);
    const order = (path: string) => {
      const s = this.seen.get(path);
      return s?.state === "ready" ? -1 : (s?.at ?? 0);
    };
    return paths
      .filter((path) => {
        const s = this.seen.get(path);
        return s?.state !== "other" || now - s.at >= AGAIN;
      })
      .sort((a, b) => order(a) - order(b) || (a < b ? -1 : 1))
      .slice(0, MOST);
  }

  /** took keeps what a round has seen. */
  took(kinds: CheckedKind[], now: number): void {
    for (const k of kinds) {
      const state = k.ready ? "ready" : !k.error && k.objects === 0 ? "empty" : "other";
      // A list that fails for once does not make another kind of a kind.
      if (k.error && k.code !== 403 && k.code !== 404 && k.code !== 405) continue;
      this.seen.set(k.path, { at: now, state });
    }
  }

  /** unread is how many of the paths were never read. */
  unread(paths: string[]): number {
    return paths.filter((path) => !this.seen.has(path)).length;
  }

  /** left are those with the condition that a round has left out. */
  left(paths: string[], taken: string[]): string[] {
    return paths.filter((path) => this.seen.get(path)?.state === "ready" && !taken.includes(path));
  }
}
