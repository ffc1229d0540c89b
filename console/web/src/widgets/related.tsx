// SPDX-License-Identifier: Apache-2.0

// Objects that belong to another: what it owns, selects or runs, each as a short live table.

import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { tableColumns } from "../model/columns";
import type { Row } from "../api/connection";
import { mergeEvents } from "../model/events";
import { isKind, type Kind, kindByWord, label, listPath } from "../api/kinds";
import { arrange, Listing, now } from "../model/listing";
import type { Sort } from "../model/order";
import { S } from "../base/strings";
import { Table } from "./table";
import { visible } from "../base/text";
import { hrefOf } from "../api/route";
import { selectorText } from "../model/selector";
import { measured, usageQuery, useUsage } from "../model/useusage";

export interface Relation {
  title: string;
  kind: Kind;
  ns: string;
  query: Record<string, string>;
  /** match chooses rows; cell gives a row's text in a column. */
  match?: (row: Row, cell: (column: string) => string) => boolean;
}

const OWNED: [group: string, resource: string, owned: string][] = [
  ["apps", "deployments", "replicasets.apps"],
  ["apps", "replicasets", "pods"],
  ["apps", "statefulsets", "pods"],
  ["apps", "daemonsets", "pods"],
  ["", "replicationcontrollers", "pods"],
  ["batch", "jobs", "pods"],
  ["batch", "cronjobs", "jobs.batch"],
];

/** relationsOf lists what belongs to an object. */
export function relationsOf(k: Kind, o: Record<string, any>): Relation[] {
  const ns: string = o.metadata.namespace ?? "";
  const name: string = o.metadata.name;
  const out: Relation[] = [];
  const add = (word: string, query: Record<string, string>, title: (kind: Kind) => string, match?: Relation["match"], at = ns) => {
    const kind = kindByWord(word);
    if (kind) out.push({ title: title(kind), kind, ns: at, query, match });
  };
  for (const [group, resource, owned] of OWNED) {
    if (!isKind(k, group, resource)) continue;
    const selector = selectorText(o.spec?.selector);
    add(
      owned,
      selector ? { labelSelector: selector } : {},
      (c) => S.related.owned(label(c)),
      (r) => r.owner?.name === name && r.owner?.kind === k.kind,
    );
  }
  if (isKind(k, "apps", "deployments")) add("pods", { labelSelector: selectorText(o.spec?.selector) }, () => S.related.pods);
  if (isKind(k, "", "services")) {
    add("endpointslices", { labelSelector: "kubernetes.io/service-name=" + name }, () => S.related.slices);
    if (o.spec?.selector) add("pods", { labelSelector: selectorText(o.spec.selector) }, () => S.related.selected);
  }
  if (isKind(k, "", "nodes")) add("pods", { fieldSelector: "spec.nodeName=" + name }, () => S.related.onNode, undefined, "");
  if (isKind(k, "", "namespaces")) add("pods", {}, () => S.related.inNamespace, undefined, name);
  if (isKind(k, "", "persistentvolumeclaims")) {
    add(
      "persistentvolumes",
      {},
      () => S.related.volume,
      (r) => r.name === o.spec?.volumeName,
      "",
    );
  }
  addRelated(k, o, ns, name, add);
  return out;
}

/** addRelated adds those that are found by what the server prints of them. */
function addRelated(
  k: Kind,
  o: Record<string, any>,
  ns: string,
  name: string,
  add: (word: string, query: Record<string, string>, title: (kind: Kind) => string, match?: Relation["match"], at?: string) => void,
): void {
  const rbac = "rbac.authorization.k8s.io";
  const has = (text: string, word: string) => text.split(/[\s,]+/).includes(word);
  if (isKind(k, "", "serviceaccounts")) {
    const account = ns + "/" + name;
    add(
      "rolebindings." + rbac,
      {},
      () => S.related.bindings,
      (_, cell) => has(cell("ServiceAccounts"), account),
    );
    add(
      "clusterrolebindings." + rbac,
      {},
      () => S.related.clusterBindings,
      (_, cell) => has(cell("ServiceAccounts"), account),
      "",
    );
    add(
      "rolebindings." + rbac,
      {},
      () => S.related.otherBindings,
      (r, cell) => r.ns !== ns && has(cell("ServiceAccounts"), account),
      "",
    );
  }
  if (isKind(k, rbac, "roles"))
    add(
      "rolebindings." + rbac,
      {},
      () => S.related.boundBy,
      (_, cell) => cell("Role") === "Role/" + name,
    );
  if (isKind(k, rbac, "clusterroles")) {
    add(
      "clusterrolebindings." + rbac,
      {},
      () => S.related.boundBy,
      (_, cell) => cell("Role") === "ClusterRole/" + name,
      "",
    );
    add(
      "rolebindings." + rbac,
      {},
      () => S.related.boundInside,
      (_, cell) => cell("Role") === "ClusterRole/" + name,
      "",
    );
  }
  if (isKind(k, "storage.k8s.io", "storageclasses")) {
    add(
      "persistentvolumeclaims",
      {},
      () => S.related.claims,
      (_, cell) => cell("StorageClass") === name,
      "",
    );
    add(
      "persistentvolumes",
      {},
      () => S.related.volumes,
      (_, cell) => cell("StorageClass") === name,
      "",
    );
  }
  if (isKind(k, "policy", "poddisruptionbudgets") || isKind(k, "networking.k8s.io", "networkpolicies")) {
    const selector = o.spec?.selector ?? o.spec?.podSelector;
    if (selector) add("pods", selectorText(selector) ? { labelSelector: selectorText(selector) } : {}, () => S.related.selected);
  }
  if (isKind(k, "helm.cattle.io", "helmcharts") && o.status?.jobName)
    add(
      "jobs.batch",
      {},
      () => S.related.job,
      (r) => r.name === o.status.jobName,
    );
}

/** eventsOf is the relation of an object with its events. */
export function eventsOf(o: Record<string, any>): Relation | null {
  const kind = kindByWord("events");
  if (!kind) return null;
  // Events of objects without a namespace are in "default".
  const ns = o.metadata.namespace ?? "default";
  const fields =
    o.kind === "Node" ? `involvedObject.kind=Node,involvedObject.name=${o.metadata.name}` : "involvedObject.uid=" + o.metadata.uid;
  return { title: S.related.events, kind, ns, query: { fieldSelector: fields } };
}

export function RelatedTable({ relation: r }: { relation: Relation }) {
  const listing = useMemo(() => new Listing(listPath(r.kind, r.ns), { ...r.query, ...usageQuery(r.kind) }), []);
  useEffect(() => () => listing.close(), []);
  const source = useSignal(listing);
  const filter = useSignal("");
  const isEvents = r.kind.resource === "events";
  const pods = isKind(r.kind, "", "pods");
  const usage = useUsage(r.kind, r.ns, pods);
  // Of a node's pods those are looked for that use most.
  const byUse = pods && r.title === S.related.onNode && measured("pods");
  const sort = useSignal<Sort>({ column: isEvents ? "Last Seen" : byUse ? "Memory" : "Name", descending: byUse });
  const rows = useMemo(() => {
    const cell = (row: Row) => (column: string) => String(row.cells[listing.columns.peek().findIndex((c) => c.name === column)] ?? "");
    const all = arrange(source, filter, sort, r.match && ((row) => r.match!(row, cell(row))), usage);
    return isEvents ? mergeEvents(listing, all) : all;
  }, []);
  const columns = useComputed(() => {
    const all = tableColumns(
      listing.columns.value,
      r.kind.namespaced && !r.ns,
      false,
      isEvents ? ["Count"] : [],
      usage.value?.columns(false),
    );
    return isEvents ? all.filter((c) => c.name !== "Object") : all;
  });
  const active = useSignal("");
  const marks = useSignal<ReadonlySet<string>>(new Set());
  const error = listing.error.value;
  return (
    <section class="related" aria-label={r.title}>
      <h2>
        {r.title} <span class="count">{listing.synced.value ? rows.value.length : "…"}</span>
      </h2>
      {error ? (
        <p class="faint">{visible(error.message)}</p>
      ) : rows.value.length === 0 ? (
        listing.synced.value && <p class="faint">{S.related.none}</p>
      ) : (
        <Table
          label={r.title}
          columns={columns}
          rows={rows}
          active={active}
          marks={marks}
          sort={sort}
          setSort={(s) => (sort.value = s)}
          tick={now}
          short
          href={(row) => hrefOf(r.kind, row)}
          open={(row) => {
            location.hash = hrefOf(r.kind, row);
          }}
          rowClass={(row) => (row.deleting ? "deleting" : "")}
        />
      )}
    </section>
  );
}
