// SPDX-License-Identifier: Apache-2.0

// What an object says of itself, in a few lines: the fields that people look for first.

import { isKind, type Kind, kindByWord, kindOfObject } from "../api/kinds";
import { format } from "../api/route";
import { S } from "../base/strings";
import { moment, when } from "../base/text";

export interface Fact {
  name: string;
  value: string;
  href?: string;
  tone?: string;
}

type Obj = Record<string, any>;

export function link(apiVersion: string, kind: string, ns: string, name: string): string | undefined {
  const k = kindOfObject(apiVersion, kind);
  return k && format({ view: "object", kind: k.id, ns: k.namespaced ? ns : "", name });
}

export function factsOf(k: Kind, o: Obj, now: number): Fact[] {
  const out: Fact[] = [];
  const ns: string = o.metadata.namespace ?? "";
  const add = (name: string, value: unknown, href?: string, tone?: string) => {
    if (value !== undefined && value !== null && value !== "") out.push({ name, value: String(value), href, tone });
  };
  const word = (resource: string, name: string | undefined, at = ns) => {
    const kind = kindByWord(resource);
    return kind && name ? format({ view: "object", kind: kind.id, ns: kind.namespaced ? at : "", name }) : undefined;
  };
  for (const r of o.metadata.ownerReferences ?? []) add(S.fact.owner, `${r.kind} ${r.name}`, link(r.apiVersion, r.kind, ns, r.name));
  add(S.fact.created, when(o.metadata.creationTimestamp, now));
  add(S.fact.deleting, o.metadata.deletionTimestamp && when(o.metadata.deletionTimestamp, now), undefined, "passing");
  add(S.fact.finalizers, (o.metadata.finalizers ?? []).join(", "));
  const s = o.spec ?? {};
  const st = o.status ?? {};
  if (isKind(k, "", "pods")) {
    add(S.fact.phase, st.phase + (st.reason ? ` (${st.reason})` : ""), undefined, st.phase === "Failed" ? "bad" : "");
    add(S.fact.message, st.message, undefined, "bad");
    add(S.fact.node, s.nodeName, word("nodes", s.nodeName));
    add(S.fact.podIP, (st.podIPs ?? []).map((x: Obj) => x.ip).join(", "));
    add(S.fact.serviceAccount, s.serviceAccountName, word("serviceaccounts", s.serviceAccountName));
    add(S.fact.qos, st.qosClass);
    add(S.fact.priorityClass, s.priorityClassName);
  } else if (isKind(k, "", "nodes")) {
    add(S.fact.unschedulable, s.unschedulable ? S.fact.cordoned : "", undefined, "passing");
    for (const a of st.addresses ?? []) add(a.type, a.address);
    add(S.fact.system, st.nodeInfo && `${st.nodeInfo.osImage}, ${st.nodeInfo.kernelVersion}, ${st.nodeInfo.architecture}`);
    add(S.fact.kubelet, st.nodeInfo?.kubeletVersion);
    add(S.fact.runtime, st.nodeInfo?.containerRuntimeVersion);
    add(S.fact.allocatable, quantities(st.allocatable));
    add(S.fact.podCIDR, (s.podCIDRs ?? []).join(", "));
    for (const t of s.taints ?? []) add(S.fact.taint, `${t.key}${t.value ? "=" + t.value : ""}:${t.effect}`);
  } else if (isKind(k, "", "services")) {
    add(S.fact.type, s.type);
    add(S.fact.clusterIP, (s.clusterIPs ?? []).join(", "));
    add(S.fact.external, (st.loadBalancer?.ingress ?? []).map((i: Obj) => i.ip ?? i.hostname).join(", "));
    for (const p of s.ports ?? [])
      add(
        S.fact.port,
        `${p.name ? p.name + " " : ""}${p.port}/${p.protocol ?? "TCP"} → ${p.targetPort ?? p.port}${p.nodePort ? " (node port " + p.nodePort + ")" : ""}`,
      );
    add(S.fact.selector, pairs(s.selector));
  } else if (isKind(k, "", "persistentvolumeclaims")) {
    add(S.fact.phase, st.phase, undefined, st.phase === "Bound" ? "" : "passing");
    add(S.fact.storageClass, s.storageClassName, word("storageclasses", s.storageClassName));
    add(S.fact.size, st.capacity?.storage ?? s.resources?.requests?.storage);
    add(S.fact.volume, s.volumeName, word("persistentvolumes", s.volumeName));
  } else if (isKind(k, "discovery.k8s.io", "endpointslices")) {
    for (const e of o.endpoints ?? []) {
      const t = e.targetRef;
      const text = `${(e.addresses ?? []).join(", ")}${t ? ` → ${t.kind} ${t.name}` : ""}${e.conditions?.ready === false ? ` (${S.fact.notReady})` : ""}`;
      add(S.fact.endpoint, text, t && word(t.kind, t.name, t.namespace ?? ns), e.conditions?.ready === false ? "passing" : "");
    }
    for (const p of o.ports ?? []) add(S.fact.port, `${p.name ? p.name + " " : ""}${p.port}/${p.protocol ?? "TCP"}`);
  } else if (isKind(k, "networking.k8s.io", "ingresses")) {
    add(S.fact.external, (st.loadBalancer?.ingress ?? []).map((i: Obj) => i.ip ?? i.hostname).join(", "));
    for (const r of s.rules ?? []) {
      for (const p of r.http?.paths ?? []) {
        const service = p.backend?.service;
        add(
          S.fact.backend,
          `${r.host ?? "*"}${p.path ?? "/"} → ${service?.name ?? ""}:${service?.port?.number ?? service?.port?.name ?? ""}`,
          word("services", service?.name),
        );
      }
    }
  } else if (s.template?.spec?.containers && (s.replicas !== undefined || st.desiredNumberScheduled !== undefined)) {
    add(
      S.fact.replicas,
      S.fact.replicasText(
        s.replicas ?? st.desiredNumberScheduled,
        st.readyReplicas ?? st.numberReady ?? 0,
        st.updatedReplicas ?? st.updatedNumberScheduled,
      ),
    );
    add(S.fact.strategy, s.strategy?.type ?? s.updateStrategy?.type);
    add(S.fact.selector, pairs(s.selector?.matchLabels));
  } else if (!hasOwnPage(k)) {
    const { apiVersion: _a, kind: _k, metadata: _m, status: _s, data: _d, stringData: _t, spec: _p, ...rest } = o;
    scalars("", { ...rest, ...s }, ns, add);
    if (typeof st.phase === "string") add(S.fact.phase, st.phase);
  }
  return out;
}

/** OWN are the kinds whose facts are in extrafacts.ts. */
const OWN: Record<string, string[]> = {
  "": ["persistentvolumes", "resourcequotas", "serviceaccounts", "configmaps", "secrets"],
  autoscaling: ["horizontalpodautoscalers"],
  batch: ["cronjobs", "jobs"],
  "gateway.networking.k8s.io": ["gateways", "httproutes", "grpcroutes"],
  "helm.cattle.io": ["helmcharts"],
  "networking.k8s.io": ["networkpolicies"],
  policy: ["poddisruptionbudgets"],
  "rbac.authorization.k8s.io": ["roles", "clusterroles", "rolebindings", "clusterrolebindings"],
  "storage.k8s.io": ["storageclasses"],
};

function hasOwnPage(k: Kind): boolean {
  return OWN[k.group]?.includes(k.resource) ?? false;
}

/** scalars lists the plain fields of an object that nothing is known about, and links what it refers to. */
function scalars(prefix: string, value: Obj, ns: string, add: (name: string, value: unknown, href?: string) => void): void {
  for (const [key, v] of Object.entries(value).slice(0, 40)) {
    if (v === null) continue;
    const name = prefix + key;
    if (typeof v !== "object") add(name, v);
    else if (Array.isArray(v))
      v.slice(0, 20).forEach((x) =>
        typeof x !== "object" ? add(name, x) : isRef(x) ? addRef(name, x, ns, add) : add(name, JSON.stringify(x)),
      );
    else if (isRef(v)) addRef(name, v, ns, add);
    else if (prefix.split(".").length < 3) scalars(name + ".", v, ns, add);
  }
}

/** isRef says whether a value names another object. */
function isRef(v: unknown): v is Obj {
  return !!v && typeof (v as Obj).kind === "string" && typeof (v as Obj).name === "string";
}

function addRef(name: string, v: Obj, ns: string, add: (name: string, value: unknown, href?: string) => void): void {
  const k = kindOfObject(v.apiVersion ?? (v.apiGroup ? v.apiGroup + "/" : ""), v.kind) ?? kindByWord(v.kind);
  const at = v.namespace ?? ns;
  add(
    name,
    `${v.kind} ${v.namespace ? v.namespace + "/" : ""}${v.name}`,
    k && (!k.namespaced || at) ? format({ view: "object", kind: k.id, ns: k.namespaced ? at : "", name: v.name }) : undefined,
  );
}

export function pairs(map: Record<string, string> | undefined): string {
  return Object.entries(map ?? {})
    .map(([k, v]) => `${k}=${v}`)
    .join(", ");
}

function quantities(map: Record<string, string> | undefined): string {
  return Object.entries(map ?? {})
    .map(([k, v]) => `${k} ${v}`)
    .join(", ");
}

export interface ContainerFact {
  name: string;
  image: string;
  init: boolean;
  ready: boolean;
  restarts: number;
  state: string;
  tone: string;
  last: string;
  resources: string;
  ports: string;
}

/** containersOf gives a pod's containers with their states. */
export function containersOf(pod: Obj, now = Date.now()): ContainerFact[] {
  const status = new Map<string, Obj>();
  for (const s of [
    ...(pod.status?.initContainerStatuses ?? []),
    ...(pod.status?.containerStatuses ?? []),
    ...(pod.status?.ephemeralContainerStatuses ?? []),
  ])
    status.set(s.name, s);
  const one = (c: Obj, init: boolean): ContainerFact => {
    const s = status.get(c.name);
    const [state, tone] = stateText(s?.state, now);
    const last = s?.lastState?.terminated ? stateText(s.lastState, now)[0] : "";
    return {
      name: c.name,
      image: c.image,
      init,
      ready: !!s?.ready,
      restarts: s?.restartCount ?? 0,
      state,
      tone: init && tone === "bad" && s?.state?.terminated?.exitCode === 0 ? "good" : tone,
      last,
      resources: [
        pairs(c.resources?.requests) && S.fact.requests(pairs(c.resources.requests)),
        pairs(c.resources?.limits) && S.fact.limits(pairs(c.resources.limits)),
      ]
        .filter(Boolean)
        .join("; "),
      ports: (c.ports ?? []).map((p: Obj) => `${p.containerPort}/${p.protocol ?? "TCP"}`).join(", "),
    };
  };
  return [
    ...(pod.spec?.initContainers ?? []).map((c: Obj) => one(c, true)),
    ...(pod.spec?.containers ?? []).map((c: Obj) => one(c, false)),
    ...(pod.spec?.ephemeralContainers ?? []).map((c: Obj) => one(c, false)),
  ];
}

function stateText(state: Obj | undefined, now: number): [text: string, tone: string] {
  if (state?.running) return [S.fact.running(when(state.running.startedAt, now)), "good"];
  if (state?.terminated) {
    const t = state.terminated;
    const text = S.fact.terminated(t.reason ?? "", t.exitCode, t.signal, moment(t.finishedAt, now)) + (t.message ? ": " + t.message : "");
    return [text, t.exitCode === 0 ? "" : "bad"];
  }
  if (state?.waiting) {
    const w = state.waiting;
    const passing = w.reason === "ContainerCreating" || w.reason === "PodInitializing";
    return [(w.reason ?? S.fact.waiting) + (w.message ? ": " + w.message : ""), passing ? "passing" : "bad"];
  }
  return [S.fact.noState, ""];
}
