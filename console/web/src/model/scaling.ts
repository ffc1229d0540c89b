// SPDX-License-Identifier: Apache-2.0

// What speaks against another number of replicas: a jump that may be a slip, and those who set the number themselves.

type Obj = Record<string, any>;

/** isJump is whether a number is more than three times the present one; from 0 it is what is more than three. */
export function isJump(now: number, wanted: number): boolean {
  return wanted > 3 * Math.max(now, 1);
}

/** Holder is somebody who sets a number of replicas, or may take back what is changed by hand. */
export type Holder =
  | { by: "hpa"; name: string; min: number; max: number }
  | { by: "controller"; name: string; kind: string }
  | { by: "helm" | "argo" | "flux"; name: string };

const groupOf = (apiVersion = "") => (apiVersion.includes("/") ? apiVersion.split("/")[0] : "");

/** autoscalersOf are the autoscalers, of those of its namespace, that have an object of a kind as their target. */
export function autoscalersOf(k: { kind: string; group: string }, name: string, all: Obj[]): Holder[] {
  return all
    .filter((h) => {
      const ref = h.spec?.scaleTargetRef ?? {};
      return ref.kind === k.kind && ref.name === name && groupOf(ref.apiVersion) === k.group;
    })
    .map((h) => ({ by: "hpa", name: String(h.metadata?.name), min: h.spec?.minReplicas ?? 1, max: h.spec?.maxReplicas ?? 0 }));
}

/** holdersOf are the others who keep an object as they want it, by its metadata. Each is named once. */
export function holdersOf(object: Obj): Holder[] {
  const m: Obj = object.metadata ?? {};
  const labels: Obj = m.labels ?? {};
  const annotations: Obj = m.annotations ?? {};
  const managers = new Set(((m.managedFields ?? []) as Obj[]).map((f) => f.manager));
  const out: Holder[] = [];
  const owner = ((m.ownerReferences ?? []) as Obj[]).find((o) => o.controller);
  if (owner) out.push({ by: "controller", kind: String(owner.kind), name: String(owner.name) });

  const tracked = annotations["argocd.argoproj.io/tracking-id"];
  const app = labels["argocd.argoproj.io/instance"] ?? (tracked ? String(tracked).split(":")[0] : undefined);
  if (app !== undefined || managers.has("argocd-controller")) out.push({ by: "argo", name: String(app ?? "") });

  const part = ["kustomize", "helm"].find((p) => labels[p + ".toolkit.fluxcd.io/name"] !== undefined || managers.has(p + "-controller"));
  if (part) {
    const at = part + ".toolkit.fluxcd.io/";
    out.push({ by: "flux", name: [labels[at + "namespace"], labels[at + "name"]].filter(Boolean).join("/") });
  }

  const release = annotations["meta.helm.sh/release-name"];
  if (part !== "helm" && (release !== undefined || labels["app.kubernetes.io/managed-by"] === "Helm")) {
    out.push({ by: "helm", name: String(release ?? labels["app.kubernetes.io/instance"] ?? "") });
  }
  return out;
}
