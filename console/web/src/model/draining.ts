// SPDX-License-Identifier: Apache-2.0

// What a drain would do with the pods of a node, by the rules of kubectl and of the console's server (console/drain.go).

type Obj = Record<string, any>;

/** Consent is what the user has to accept before a pod is evicted. */
export type Consent = "daemonSets" | "emptyDir" | "force";

export interface DrainedPod {
  name: string;
  /** controller is its kind and name; empty when it has none. */
  controller: string;
  consent: Consent[];
}

/** drainedPods are the pods of a node that a drain is about: not those that the node itself made. */
export function drainedPods(pods: Obj[]): DrainedPod[] {
  return pods
    .filter((p) => !p.metadata?.annotations?.["kubernetes.io/config.mirror"])
    .map((p) => {
      const owner = ((p.metadata?.ownerReferences ?? []) as Obj[]).find((o) => o.controller);
      const ended = p.status?.phase === "Succeeded" || p.status?.phase === "Failed";
      const consent: Consent[] = [];
      if (!ended && owner?.kind === "DaemonSet" && owner.apiVersion === "apps/v1") consent.push("daemonSets");
      else if (!ended) {
        if (((p.spec?.volumes ?? []) as Obj[]).some((v) => v.emptyDir)) consent.push("emptyDir");
        if (!owner) consent.push("force");
      }
      return { name: p.metadata.namespace + "/" + p.metadata.name, controller: owner ? `${owner.kind} ${owner.name}` : "", consent };
    })
    .sort((a, b) => b.consent.length - a.consent.length || (a.name < b.name ? -1 : 1));
}
