// SPDX-License-Identifier: Apache-2.0

// How far a rollout is, by the rules of kubectl rollout status.

type Obj = Record<string, any>;

export interface Rollout {
  /** fresh is how many of the wanted pods are new and ready. */
  fresh: number;
  wanted: number;
  done: boolean;
}

/** rolloutOf is how far a workload's rollout is; null where pods are replaced by hand only, or nothing happens by itself. */
export function rolloutOf(o: Obj): Rollout | null {
  const spec: Obj = o.spec ?? {};
  const status: Obj = o.status ?? {};
  if (spec.updateStrategy?.type === "OnDelete" || spec.paused || spec.updateStrategy?.rollingUpdate?.partition > 0) return null;
  const seen = (status.observedGeneration ?? 0) >= (o.metadata?.generation ?? 0);
  const daemons = o.kind === "DaemonSet";
  const wanted: number = (daemons ? status.desiredNumberScheduled : spec.replicas) ?? (daemons ? 0 : 1);
  const updated: number = (daemons ? status.updatedNumberScheduled : status.updatedReplicas) ?? 0;
  const ready: number = (daemons ? status.numberAvailable : status.availableReplicas) ?? 0;
  const all: number = daemons ? updated : (status.replicas ?? 0);
  const done = seen && updated >= wanted && all <= updated && ready >= wanted;
  // Old pods are among those that are ready, until they have gone.
  return { fresh: seen ? Math.max(0, Math.min(updated, ready - (all - updated))) : 0, wanted, done };
}
