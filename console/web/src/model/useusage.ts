// SPDX-License-Identifier: Apache-2.0

// Whether a list has columns of what its objects use. The code for these is loaded with the first such list.

import { type Signal, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { WITH_USE } from "../api/connection";
import { isKind, type Kind, kinds } from "../api/kinds";
import type { Usage } from "./usage";

/** measured says whether the cluster measures pods or nodes. */
export function measured(resource: string): boolean {
  return kinds.value.some((k) => k.group === "metrics.k8s.io" && k.resource === resource);
}

/** hasPods says whether a kind is that of pods, or of workloads that have pods by a selector. */
export function hasPods(kind: Kind): boolean {
  return (
    isKind(kind, "", "pods", "replicationcontrollers") ||
    isKind(kind, "apps", "deployments", "replicasets", "statefulsets", "daemonsets") ||
    isKind(kind, "batch", "jobs")
  );
}

/** usageQuery asks for what pods or nodes reserve, in a list of them. */
export function usageQuery(kind: Kind): Record<string, string> {
  return isKind(kind, "", "pods", "nodes") && measured(kind.resource) ? WITH_USE : {};
}

/** useUsage measures what the objects of a list use, while it is shown; null where nothing is measured or wanted. */
export function useUsage(kind: Kind, ns: string, wanted = true): Signal<Usage | null> {
  const usage = useSignal<Usage | null>(null);
  useEffect(() => {
    if (!wanted) return;
    if (!(hasPods(kind) && measured("pods")) && !(isKind(kind, "", "nodes") && measured("nodes"))) return;
    let closed = false;
    let end = () => {};
    import("./meter").then(
      (m) => {
        if (!closed) end = m.follow(kind, ns, usage);
      },
      () => undefined,
    );
    return () => {
      closed = true;
      end();
    };
  }, []);
  return usage;
}
