// SPDX-License-Identifier: Apache-2.0

// What the user may do, by the server's own answer (SelfSubjectRulesReview). The server decides anyway: this only lets
// buttons say beforehand that they would be refused.

import { signal } from "@preact/signals";
import { api } from "./client";
import type { Kind } from "./kinds";
import { session } from "./session";
import { S } from "../base/strings";

interface Rule {
  verbs: string[];
  apiGroups?: string[];
  resources?: string[];
  resourceNames?: string[];
}

interface Rules {
  rules: Rule[];
  /** incomplete rules allow more than they say. */
  incomplete: boolean;
}

/** NOWHERE is no namespace: what may be done there may be done in all, and with what lies in none. */
export const NOWHERE = "*";

const known = signal<ReadonlyMap<string, Rules>>(new Map());
const asked = new Set<string>();

/** askPermissions reads the rules of a namespace once. */
export function askPermissions(ns: string): void {
  const at = ns || "default";
  if (asked.has(at)) return;
  asked.add(at);
  api<{ status: { resourceRules: Rule[]; incomplete: boolean } }>("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {
    apiVersion: "authorization.k8s.io/v1",
    kind: "SelfSubjectRulesReview",
    spec: { namespace: at },
  }).then(
    (answer) => {
      known.value = new Map(known.value).set(at, { rules: answer.status.resourceRules ?? [], incomplete: answer.status.incomplete });
    },
    () => asked.delete(at),
  );
}

export function forgetPermissions(): void {
  asked.clear();
  known.value = new Map();
}

/** refusal is why an action would be refused; empty when it is allowed or not known. */
export function refusal(verb: string, k: Kind, ns: string, name = "", sub = ""): string {
  if (session.value?.readOnly && verb !== "get" && verb !== "list" && verb !== "watch") return S.readOnly;
  askPermissions(ns);
  const have = known.value.get(ns || "default");
  if (!have || have.incomplete) return "";
  const resource = sub ? k.resource + "/" + sub : k.resource;
  const ok = have.rules.some(
    (r) =>
      (r.verbs.includes("*") || r.verbs.includes(verb)) &&
      (r.apiGroups ?? []).some((g) => g === "*" || g === k.group) &&
      (r.resources ?? []).some((x) => x === "*" || x === resource || (sub && x === "*/" + sub)) &&
      (!r.resourceNames?.length || !name || r.resourceNames.includes(name)),
  );
  return ok ? "" : S.refused(verb, resource, ns);
}
