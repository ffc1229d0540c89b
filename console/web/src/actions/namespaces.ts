// SPDX-License-Identifier: Apache-2.0

// The choice of a namespace. Users who may not list namespaces choose one in which they have rights, or type its name.

import { api } from "../api/client";
import { choose } from "../widgets/dialog";
import { namespace, setNamespace } from "../api/route";
import { session } from "../api/session";
import { S } from "../base/strings";

/** storeOfUsed is where the namespaces are that were typed, those of each context apart. */
function storeOfUsed(): string {
  return "coracle.namespaces " + (session.value?.context ?? "");
}

function used(): string[] {
  try {
    const list: unknown = JSON.parse(localStorage.getItem(storeOfUsed()) ?? "[]");
    return Array.isArray(list) ? list.filter((x): x is string => typeof x === "string") : [];
  } catch {
    return [];
  }
}

/** ownNamespaces are those in which RBAC gives the user something; null where the server does not say it. */
async function ownNamespaces(): Promise<string[] | null> {
  try {
    const answer = await api<{ namespaces?: unknown }>("GET", "/coracle/namespaces");
    return Array.isArray(answer.namespaces) ? answer.namespaces.filter((x): x is string => typeof x === "string") : null;
  } catch {
    return null; // a cluster that is not Coracle's
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
  const rights = names ? null : await ownNamespaces();
  const own = session.value?.namespace;
  const items = names ?? rights ?? [...new Set([...(own ? [own] : []), ...used()])];
  choose({
    title: S.namespace.title,
    hint: names ? "" : rights ? S.namespace.rights : S.namespace.typed,
    items: rights ? [...items, S.namespace.all] : [S.namespace.all, ...items],
    current: namespace.value || S.namespace.all,
    free: !names,
    pick: (item) => {
      const ns = item === S.namespace.all ? "" : item;
      if (ns) localStorage.setItem(storeOfUsed(), JSON.stringify([ns, ...used().filter((x) => x !== ns)].slice(0, 20)));
      setNamespace(ns);
    },
  });
}

/** beginNamespace is where a new tab begins: everywhere for those who may list pods everywhere, else where they have rights. */
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
  const own = session.value?.namespace || "default";
  const rights = await ownNamespaces();
  return !rights?.length || rights.includes(own) ? own : rights[0];
}
