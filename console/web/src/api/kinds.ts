// SPDX-License-Identifier: Apache-2.0

// The kinds that the cluster has, by discovery, and the paths of their objects. Custom resources are kinds as others.

import { signal } from "@preact/signals";
import { api } from "./client";

export interface Kind {
  /** id is kubectl's full name of the resource: pods.v1, deployments.v1.apps. */
  id: string;
  group: string;
  version: string;
  resource: string;
  kind: string;
  namespaced: boolean;
  singular: string;
  shortNames: string[];
  verbs: string[];
  subresources: string[];
}

export const kinds = signal<Kind[]>([]);
export const kindsError = signal("");

interface DiscoveryResource {
  resource: string;
  responseKind?: { kind: string };
  scope: string;
  singularResource?: string;
  shortNames?: string[];
  verbs?: string[];
  subresources?: { subresource: string }[];
}

interface DiscoveryList {
  kind: string;
  items?: { metadata?: { name?: string }; versions: { version: string; resources?: DiscoveryResource[] }[] }[];
}

interface ResourceList {
  resources: { name: string; kind: string; namespaced: boolean; singularName: string; shortNames?: string[]; verbs: string[] }[];
}

const AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

let loadedAt = 0;

/** refreshKinds finds kinds that are new since the last look, not more often than each 15 s. */
export function refreshKinds(): void {
  if (Date.now() - loadedAt > 15_000) loadKinds().catch(() => undefined);
}

/** loadKinds asks the server for its kinds. Kinds of a group that does not answer are missing, and the rest are there. */
export async function loadKinds(): Promise<void> {
  loadedAt = Date.now();
  const found = (await Promise.all([root("/api"), root("/apis")])).flat();
  const seen = new Set<string>();
  kinds.value = found
    .filter((k) => k.verbs.includes("list") || k.verbs.includes("get"))
    .filter((k) => {
      // The first version of a group is its preferred one.
      const key = k.resource + "." + k.group;
      if (seen.has(key)) return false;
      seen.add(key);
      return true;
    });
  kindsError.value = "";
}

async function root(path: string): Promise<Kind[]> {
  const list = await api<DiscoveryList>("GET", path, undefined, { Accept: AGGREGATED });
  if (list.kind !== "APIGroupDiscoveryList") return legacy(path, list as unknown as Record<string, any>);
  const out: Kind[] = [];
  for (const item of list.items ?? []) {
    const group = item.metadata?.name ?? "";
    for (const v of item.versions) {
      for (const r of v.resources ?? []) {
        out.push(
          kindOf(group, v.version, r.resource, {
            kind: r.responseKind?.kind ?? r.resource,
            namespaced: r.scope === "Namespaced",
            singular: r.singularResource ?? "",
            shortNames: r.shortNames ?? [],
            verbs: r.verbs ?? [],
            subresources: (r.subresources ?? []).map((s) => s.subresource),
          }),
        );
      }
    }
  }
  return out;
}

function kindOf(group: string, version: string, resource: string, rest: Omit<Kind, "id" | "group" | "version" | "resource">): Kind {
  return { id: resource + "." + version + (group ? "." + group : ""), group, version, resource, ...rest };
}

/** legacy asks group by group, for a server that does not give all groups at once. */
async function legacy(path: string, list: Record<string, any>): Promise<Kind[]> {
  const versions: [string, string, string][] =
    path === "/api"
      ? (list.versions as string[]).map((v) => ["", v, "/api/" + v])
      : (list.groups as any[]).flatMap((g) =>
          [g.preferredVersion, ...g.versions.filter((v: any) => v.version !== g.preferredVersion.version)].map(
            (v: any): [string, string, string] => [g.name, v.version, "/apis/" + v.groupVersion],
          ),
        );
  const all = await Promise.all(
    versions.map(async ([group, version, at]) => {
      const r = await api<ResourceList>("GET", at).catch(() => ({ resources: [] }));
      return r.resources
        .filter((x) => !x.name.includes("/"))
        .map((x) =>
          kindOf(group, version, x.name, {
            kind: x.kind,
            namespaced: x.namespaced,
            singular: x.singularName,
            shortNames: x.shortNames ?? [],
            verbs: x.verbs,
            subresources: r.resources.filter((s) => s.name.startsWith(x.name + "/")).map((s) => s.name.slice(x.name.length + 1)),
          }),
        );
    }),
  );
  return all.flat();
}

/** kindById finds a kind by its full name, also one of a version that is not the preferred one. */
export function kindById(id: string): Kind | undefined {
  const exact = kinds.value.find((k) => k.id === id);
  if (exact) return exact;
  const [resource, , ...group] = id.split(".");
  return kinds.value.find((k) => k.resource === resource && k.group === group.join("."));
}

/** kindOfObject finds a kind by what an object says of itself. */
export function kindOfObject(apiVersion: string, kind: string): Kind | undefined {
  const group = apiVersion.includes("/") ? apiVersion.split("/")[0] : "";
  return kinds.value.find((k) => k.kind === kind && k.group === group);
}

/** kindByWord finds a kind by a name that people type: resource, singular, short name, kind, or resource.group. */
export function kindByWord(word: string): Kind | undefined {
  const w = word.toLowerCase();
  const all = kinds.value;
  return (
    all.find((k) => k.shortNames.includes(w)) ??
    all.find((k) => k.resource === w) ??
    all.find((k) => k.singular === w || k.kind.toLowerCase() === w) ??
    all.find((k) => k.resource + "." + k.group === w || k.id === w)
  );
}

/** suggest lists kinds for text that is being typed, the best first. */
export function suggest(text: string, limit = 12): Kind[] {
  const w = text.toLowerCase();
  const listable = kinds.value.filter((k) => k.verbs.includes("list"));
  if (!w)
    return listable
      .filter((k) => COMMON.includes(k.resource) && (k.group === "" || k.group === "apps" || k.group === "batch"))
      .slice(0, limit);
  const score = (k: Kind): number =>
    k.shortNames.includes(w)
      ? 0
      : k.resource === w
        ? 1
        : k.resource.startsWith(w)
          ? 2 + (k.group ? 0.5 : 0)
          : (k.resource + "." + k.group).startsWith(w) || k.id.startsWith(w)
            ? 3
            : k.resource.includes(w)
              ? 4
              : k.group.includes(w)
                ? 5
                : 9;
  return listable
    .map((k) => [score(k), k] as const)
    .filter(([s]) => s < 9)
    .sort((a, b) => a[0] - b[0] || (a[1].id < b[1].id ? -1 : 1))
    .slice(0, limit)
    .map(([, k]) => k);
}

const COMMON = [
  "pods",
  "deployments",
  "statefulsets",
  "daemonsets",
  "jobs",
  "cronjobs",
  "services",
  "configmaps",
  "secrets",
  "persistentvolumeclaims",
  "nodes",
  "namespaces",
  "events",
];

function base(k: Kind): string {
  return k.group ? "/apis/" + k.group + "/" + k.version : "/api/" + k.version;
}

/** listPath is the path of a kind's objects in a namespace, or in all when ns is empty. */
export function listPath(k: Kind, ns: string): string {
  return base(k) + (k.namespaced && ns ? "/namespaces/" + encodeURIComponent(ns) : "") + "/" + k.resource;
}

export function objectPath(k: Kind, ns: string, name: string): string {
  return listPath(k, ns) + "/" + encodeURIComponent(name);
}

/** plainPath is a path as streams and edits have it, where it is no part of an address: "system:node" and not "system%3Anode". */
export function plainPath(path: string): string {
  return decodeURIComponent(path);
}

/** label is a kind's name for people, with its group where that is needed. */
export function label(k: Kind): string {
  return k.group && k.group.includes(".") && !k.group.endsWith(".k8s.io") ? k.resource + "." + k.group : k.resource;
}

/** isKind is whether a kind is one of these resources of a group. */
export function isKind(k: Kind, group: string, ...resources: string[]): boolean {
  return k.group === group && resources.includes(k.resource);
}
