// SPDX-License-Identifier: Apache-2.0

// The choice of a namespace. Users who may not list namespaces type the name of theirs.

import { api } from "./client";
import { choose } from "./dialog";
import { namespace, setNamespace } from "./route";
import { session } from "./session";
import { S } from "./strings";

const USED = "coracle.namespaces";

function used(): string[] {
  try {
    const list: unknown = JSON.parse(localStorage.getItem(USED) ?? "[]");
    return Array.isArray(list) ? list.filter((x): x is string => typeof x === "string") : [];
  } catch {
    return [];
  }
}

/** namespaceNames lists the cluster's namespaces; null when the user may not. */
export async function namespaceNames(): Promise<string[] | null> {
  try {
    const list = await api<{ items: { metadata: { name: string } }[] }>("GET", "/api/v1/namespaces?limit=2000");
    return list.items.map((n) => n.metadata.name);
  } catch {
    return null;
  }
}

export async function chooseNamespace(): Promise<void> {
  const names = await namespaceNames();
  const own = session.value?.namespace;
  const items = names ?? [...new Set([...(own ? [own] : []), ...used()])];
  choose({
    title: S.namespace.title,
    hint: names ? "" : S.namespace.typed,
    items: [S.namespace.all, ...items],
    current: namespace.value || S.namespace.all,
    free: !names,
    pick: (item) => {
      const ns = item === S.namespace.all ? "" : item;
      if (ns) localStorage.setItem(USED, JSON.stringify([ns, ...used().filter((x) => x !== ns)].slice(0, 20)));
      setNamespace(ns);
    },
  });
}

/** beginNamespace is where a new tab begins: everywhere, for those who may list pods everywhere. */
export async function beginNamespace(): Promise<string> {
  try {
    const review = await api<{ status: { allowed: boolean } }>("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {
      apiVersion: "authorization.k8s.io/v1",
      kind: "SelfSubjectAccessReview",
      spec: { resourceAttributes: { verb: "list", resource: "pods" } },
    });
    if (review.status.allowed) return "";
  } catch {
    // The user's own namespace is a good place to begin, too.
  }
  return session.value?.namespace || "default";
}
