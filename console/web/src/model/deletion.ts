// SPDX-License-Identifier: Apache-2.0

// What a deletion takes with it, what it waits for, and what it is asked with.

type Obj = Record<string, any>;

interface KindName {
  group: string;
  resource: string;
}

/** Loss names the text of what is lost with an object. */
export type Loss =
  | "namespace"
  | "node"
  | "volume"
  | "crd"
  | "controlledPod"
  | "barePod"
  | "workload"
  | "statefulSet"
  | "claim"
  | "config"
  | "service"
  | "rights"
  | "chart"
  | "other";

const LOSSES: Record<string, Loss> = {
  "namespaces.": "namespace",
  "nodes.": "node",
  "persistentvolumes.": "volume",
  "customresourcedefinitions.apiextensions.k8s.io": "crd",
  "persistentvolumeclaims.": "claim",
  "configmaps.": "config",
  "secrets.": "config",
  "services.": "service",
  "ingresses.networking.k8s.io": "service",
  "httproutes.gateway.networking.k8s.io": "service",
  "gateways.gateway.networking.k8s.io": "service",
  "serviceaccounts.": "rights",
  "roles.rbac.authorization.k8s.io": "rights",
  "rolebindings.rbac.authorization.k8s.io": "rights",
  "clusterroles.rbac.authorization.k8s.io": "rights",
  "clusterrolebindings.rbac.authorization.k8s.io": "rights",
  "helmcharts.helm.cattle.io": "chart",
  "statefulsets.apps": "statefulSet",
  "deployments.apps": "workload",
  "replicasets.apps": "workload",
  "daemonsets.apps": "workload",
  "replicationcontrollers.": "workload",
  "jobs.batch": "workload",
  "cronjobs.batch": "workload",
};

/** lossOf is what is lost with objects of a kind. object is the one that is deleted, when it is one and it is known. */
export function lossOf(k: KindName, object?: Obj | null): Loss {
  if (k.group === "" && k.resource === "pods") {
    const owners = (object?.metadata?.ownerReferences ?? []) as Obj[];
    return !object || owners.some((o) => o.controller) ? "controlledPod" : "barePod";
  }
  return LOSSES[k.resource + "." + k.group] ?? "other";
}

/** isGrave is whether a deletion of this kind takes so much with it that the name is typed. */
export function isGrave(k: KindName): boolean {
  return ["namespace", "node", "volume", "crd"].includes(lossOf(k));
}

/** owns is whether other objects may belong to those of a kind: their fate can be chosen. */
export function owns(k: KindName): boolean {
  return !isGrave(k) && !(k.group === "" && ["pods", "configmaps", "secrets", "persistentvolumeclaims", "events"].includes(k.resource));
}

export interface Choices {
  /** grace is a number of seconds; empty for what each object says. */
  grace: string;
  force: boolean;
  cascade: "background" | "foreground" | "orphan";
}

const POLICY = { background: "Background", foreground: "Foreground", orphan: "Orphan" };

/** deleteOptions are the options of the API's request. Only the object with this uid is deleted, when one is given. */
export function deleteOptions(c: Choices, uid = ""): Obj {
  const grace = c.force ? 0 : c.grace === "" ? undefined : Number(c.grace);
  return {
    apiVersion: "v1",
    kind: "DeleteOptions",
    propagationPolicy: POLICY[c.cascade],
    ...(grace === undefined ? {} : { gracePeriodSeconds: grace }),
    ...(uid ? { preconditions: { uid } } : {}),
  };
}

/** commandOptions are the same for kubectl. */
export function commandOptions(c: Choices): string[] {
  return [
    ...(c.force ? ["--grace-period=0", "--force"] : c.grace === "" ? [] : ["--grace-period=" + Number(c.grace)]),
    ...(c.cascade === "background" ? [] : ["--cascade=" + c.cascade]),
  ];
}

/** Count is how many objects there are, of how many kinds; partial when there may be more. */
export interface Count {
  objects: number;
  kinds: [name: string, n: number][];
  partial: boolean;
}

/** Counted is the answer of one list with a limit of one: null for a list that could not be read. */
export type Counted = { name: string; list: { items?: unknown[]; metadata?: { continue?: string; remainingItemCount?: number } } | null };

/** sum adds lists, the kinds with most objects first. */
export function sum(all: Counted[]): Count {
  const out: Count = { objects: 0, kinds: [], partial: false };
  for (const { name, list } of all) {
    if (!list) {
      out.partial = true;
      continue;
    }
    const rest = list.metadata?.remainingItemCount;
    const n = (list.items?.length ?? 0) + (rest ?? 0);
    if (list.metadata?.continue && rest === undefined) out.partial = true;
    if (n > 0) out.kinds.push([name, n]);
    out.objects += n;
  }
  out.kinds.sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  return out;
}

/** finalizersOf are those that an object that is being deleted waits for. */
export function finalizersOf(object: Obj | null | undefined): string[] {
  const m: Obj = object?.metadata ?? {};
  return m.deletionTimestamp && Array.isArray(m.finalizers)
    ? (m.finalizers as unknown[]).filter((f): f is string => typeof f === "string")
    : [];
}

/** leftOf are the conditions of a namespace that is being deleted which say what is left in it. */
export function leftOf(object: Obj | null | undefined): string[] {
  if (!object?.metadata?.deletionTimestamp || object.kind !== "Namespace") return [];
  const all = (object.status?.conditions ?? []) as Obj[];
  return all.filter((c) => c.status === "True" && c.message).map((c) => String(c.message));
}

/** removal is a JSON patch that takes one finalizer from the object with this uid, and nothing if it is not there. */
export function removal(object: Obj, finalizer: string): Obj[] {
  const at = "/metadata/finalizers/" + (object.metadata.finalizers as string[]).indexOf(finalizer);
  return [
    { op: "test", path: "/metadata/uid", value: object.metadata.uid },
    { op: "test", path: at, value: finalizer },
    { op: "remove", path: at },
  ];
}

/** Risk names the text of what the removal of a finalizer risks. */
export function riskOf(finalizer: string): "inUse" | "dependents" | "backend" | "other" {
  if (/^kubernetes\.io\/pvc?-protection$|^snapshot\.storage\.kubernetes\.io\//.test(finalizer)) return "inUse";
  if (finalizer === "foregroundDeletion" || finalizer === "orphan") return "dependents";
  return /^(external-(provisioner|attacher)|service\.kubernetes\.io)\b/.test(finalizer) ? "backend" : "other";
}
