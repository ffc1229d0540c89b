// SPDX-License-Identifier: Apache-2.0

// Facts of kinds that are looked at less often than pods: they are loaded with the first page of an object.

import { type Fact, link, pairs } from "./facts";
import { type Kind, kindByWord } from "../api/kinds";
import { format } from "../api/route";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { when } from "../base/text";
import { selectorText } from "./selector";

type Obj = Record<string, any>;
type Add = (name: string, value: unknown, href?: string, tone?: string) => void;

const F = M.extra;

/** extraFacts are the facts of an object beside those of factsOf. */
export function extraFacts(k: Kind, o: Obj, now: number): Fact[] {
  const out: Fact[] = [];
  const add: Add = (name, value, href, tone) => {
    if (value !== undefined && value !== null && value !== "") out.push({ name, value: String(value), href, tone });
  };
  OF[k.resource + "." + k.group]?.(o, add, now);
  return out;
}

function to(word: string, ns: string, name: string | undefined): string | undefined {
  const k = kindByWord(word);
  return k && name ? format({ view: "object", kind: k.id, ns: k.namespaced ? ns : "", name }) : undefined;
}

function ago(time: string | undefined, now: number): string {
  return time ? when(time, now) : "";
}

const OF: Record<string, (o: Obj, add: Add, now: number) => void> = {
  "services.": (o, add) => {
    const s = o.spec ?? {};
    add(F.externalName, s.externalName);
    add(F.externalIPs, (s.externalIPs ?? []).join(", "));
    add(F.loadBalancerClass, s.loadBalancerClass);
    add(F.externalPolicy, s.externalTrafficPolicy);
    add(F.internalPolicy, s.internalTrafficPolicy === "Local" ? "Local" : "");
    add(F.affinity, s.sessionAffinity === "None" ? "" : s.sessionAffinity);
  },
  "ingresses.networking.k8s.io": (o, add) => {
    const s = o.spec ?? {};
    const ns = o.metadata.namespace;
    add(F.class, s.ingressClassName, to("ingressclasses", "", s.ingressClassName));
    const d = s.defaultBackend?.service;
    if (d) add(F.otherwise, `${d.name}:${d.port?.number ?? d.port?.name ?? ""}`, to("services", ns, d.name));
    for (const t of s.tls ?? [])
      add(F.tls, `${(t.hosts ?? ["*"]).join(", ")}${t.secretName ? " ← " + t.secretName : ""}`, to("secrets", ns, t.secretName));
  },
  "gateways.gateway.networking.k8s.io": (o, add) => {
    add(F.class, o.spec?.gatewayClassName, to("gatewayclasses", "", o.spec?.gatewayClassName));
    for (const a of o.status?.addresses ?? []) add(S.fact.external, a.value);
    for (const l of o.spec?.listeners ?? []) {
      const routes = (o.status?.listeners ?? []).find((x: Obj) => x.name === l.name)?.attachedRoutes;
      add(
        F.listener,
        `${l.name}: ${l.protocol} ${l.port}${l.hostname ? " " + l.hostname : ""}${routes === undefined ? "" : F.routes(routes)}`,
      );
    }
  },
  "httproutes.gateway.networking.k8s.io": route,
  "grpcroutes.gateway.networking.k8s.io": route,
  "persistentvolumes.": (o, add) => {
    const s = o.spec ?? {};
    const c = s.claimRef;
    add(S.fact.phase, o.status?.phase, undefined, /^(Bound|Available)$/.test(o.status?.phase) ? "" : "passing");
    add(S.fact.size, s.capacity?.storage);
    if (c) add(S.fact.claim, `${c.namespace}/${c.name}`, to("persistentvolumeclaims", c.namespace, c.name));
    add(S.fact.storageClass, s.storageClassName, to("storageclasses", "", s.storageClassName));
    add(F.access, (s.accessModes ?? []).join(", "));
    add(F.reclaim, s.persistentVolumeReclaimPolicy);
    add(
      F.source,
      s.csi
        ? `csi ${s.csi.driver} ${s.csi.volumeHandle}`
        : s.local
          ? `local ${s.local.path}`
          : s.hostPath
            ? `hostPath ${s.hostPath.path}`
            : s.nfs
              ? `nfs ${s.nfs.server}:${s.nfs.path}`
              : "",
    );
    for (const t of s.nodeAffinity?.required?.nodeSelectorTerms ?? [])
      add(F.nodes, selectorText({ matchExpressions: t.matchExpressions ?? [] }));
  },
  "persistentvolumeclaims.": (o, add) => {
    const want = o.spec?.resources?.requests?.storage;
    const have = o.status?.capacity?.storage;
    if (have && want !== have) add(F.wanted, want, undefined, "passing");
    add(F.access, (o.status?.accessModes ?? o.spec?.accessModes ?? []).join(", "));
  },
  "storageclasses.storage.k8s.io": (o, add) => {
    add(F.provisioner, o.provisioner);
    add(F.default, o.metadata.annotations?.["storageclass.kubernetes.io/is-default-class"] === "true" ? F.yes : "");
    add(F.reclaim, o.reclaimPolicy);
    add(F.binding, o.volumeBindingMode);
    add(F.expansion, o.allowVolumeExpansion ? F.yes : F.no);
    add(F.parameters, pairs(o.parameters));
  },
  "horizontalpodautoscalers.autoscaling": (o, add, now) => {
    const s = o.spec ?? {};
    const st = o.status ?? {};
    const t = s.scaleTargetRef ?? {};
    add(F.target, `${t.kind} ${t.name}`, link(t.apiVersion ?? "", t.kind, o.metadata.namespace, t.name));
    for (const c of st.conditions ?? [])
      if (c.status === "False" && /^(ScalingActive|AbleToScale)$/.test(c.type)) add(F.notScaled, c.message || c.reason, undefined, "bad");
    add(
      S.fact.replicas,
      F.replicas(st.currentReplicas ?? 0, st.desiredReplicas ?? 0),
      undefined,
      st.currentReplicas === st.desiredReplicas ? "" : "passing",
    );
    add(F.bounds, `${s.minReplicas ?? 1} – ${s.maxReplicas}`, undefined, st.desiredReplicas === s.maxReplicas ? "passing" : "");
    (s.metrics ?? []).forEach((m: Obj) => {
      const is = (st.currentMetrics ?? []).find((c: Obj) => c.type === m.type && nameOfMetric(c) === nameOfMetric(m));
      add(nameOfMetric(m), F.metric(amount(inner(is)?.current), amount(inner(m)?.target)), undefined, is ? "" : "passing");
    });
    add(F.lastScaled, ago(st.lastScaleTime, now));
  },
  "poddisruptionbudgets.policy": (o, add) => {
    const s = o.spec ?? {};
    const st = o.status ?? {};
    add(F.minAvailable, s.minAvailable);
    add(F.maxUnavailable, s.maxUnavailable);
    add(S.fact.selector, selectorText(s.selector));
    add(
      F.healthy,
      F.healthyText(st.currentHealthy ?? 0, st.desiredHealthy ?? 0, st.expectedPods ?? 0),
      undefined,
      st.currentHealthy < st.desiredHealthy ? "bad" : "",
    );
    add(F.disruptions, st.disruptionsAllowed, undefined, st.disruptionsAllowed === 0 ? "passing" : "good");
  },
  "cronjobs.batch": (o, add, now) => {
    const s = o.spec ?? {};
    add(F.schedule, s.schedule + (s.timeZone ? ` (${s.timeZone})` : ""));
    add(F.suspended, s.suspend ? F.yes : "", undefined, "passing");
    add(F.concurrency, s.concurrencyPolicy);
    add(F.lastRun, ago(o.status?.lastScheduleTime, now));
    add(F.lastSuccess, ago(o.status?.lastSuccessfulTime, now));
    for (const a of o.status?.active ?? []) add(F.runs, a.name, to("jobs.batch", o.metadata.namespace, a.name));
  },
  "jobs.batch": (o, add, now) => {
    const st = o.status ?? {};
    add(F.completions, F.completed(st.succeeded ?? 0, o.spec?.completions ?? 1));
    add(F.active, st.active);
    add(F.failed, st.failed, undefined, "bad");
    add(F.started, ago(st.startTime, now));
    add(F.ended, ago(st.completionTime, now));
    add(F.suspended, o.spec?.suspend ? F.yes : "", undefined, "passing");
  },
  "serviceaccounts.": (o, add) => {
    const ns = o.metadata.namespace;
    add(F.mountsToken, o.automountServiceAccountToken === false ? F.no : "");
    for (const p of o.imagePullSecrets ?? []) add(F.pullSecret, p.name, to("secrets", ns, p.name));
  },
  "secrets.": (o, add) => {
    add(S.fact.type, o.type);
    add(F.immutable, o.immutable ? F.yes : "");
  },
  "configmaps.": (o, add) => {
    add(F.immutable, o.immutable ? F.yes : "");
    add(F.binary, Object.keys(o.binaryData ?? {}).join(", "));
  },
  "rolebindings.rbac.authorization.k8s.io": boundRole,
  "clusterrolebindings.rbac.authorization.k8s.io": boundRole,
  "clusterroles.rbac.authorization.k8s.io": (o, add) => {
    for (const s of o.aggregationRule?.clusterRoleSelectors ?? []) add(F.aggregates, selectorText(s));
  },
  "networkpolicies.networking.k8s.io": (o, add) => {
    const s = o.spec ?? {};
    add(F.applies, podsText(s.podSelector));
    const types: string[] = s.policyTypes ?? ["Ingress"];
    for (const [type, rules, from, none] of [
      ["Ingress", s.ingress, "from", F.nothingIn],
      ["Egress", s.egress, "to", F.nothingOut],
    ] as const) {
      if (!types.includes(type)) continue;
      const name = type === "Ingress" ? F.in : F.out;
      if (!rules?.length) add(name, none, undefined, "passing");
      for (const r of rules ?? []) add(name, ruleText(r[from], r.ports, type === "Ingress"));
    }
  },
  "helmcharts.helm.cattle.io": (o, add) => {
    const s = o.spec ?? {};
    const ns = s.targetNamespace || o.metadata.namespace;
    add(M.helm.chart, s.chart || (s.chartContent ? F.inObject : ""));
    add(M.helm.repo, s.repo);
    add(M.helm.chartVersion, s.version);
    add(M.helm.target, ns, to("namespaces", "", ns));
    add(
      M.helm.releaseOf,
      o.metadata.name,
      format({
        view: "helm",
        kind: "releases",
        ns,
        name: o.metadata.name,
        params: s.driver === "configmap" ? { driver: "configmaps" } : {},
      }),
    );
    add(M.helm.revision, o.status?.revision);
    add(F.failurePolicy, s.failurePolicy);
    for (const x of s.valuesSecrets ?? []) add(F.valuesSecret, x.name, to("secrets", o.metadata.namespace, x.name));
  },
};

function boundRole(o: Obj, add: Add): void {
  const r = o.roleRef ?? {};
  add(
    F.role,
    `${r.kind} ${r.name}`,
    to((r.kind === "Role" ? "roles" : "clusterroles") + ".rbac.authorization.k8s.io", o.metadata.namespace ?? "", r.name),
  );
}

function route(o: Obj, add: Add): void {
  const ns = o.metadata.namespace;
  for (const p of o.spec?.parentRefs ?? []) {
    const kind = p.kind ?? "Gateway";
    add(
      F.parent,
      `${kind} ${p.namespace ? p.namespace + "/" : ""}${p.name}${p.sectionName ? " " + p.sectionName : ""}`,
      kind === "Gateway" ? to("gateways.gateway.networking.k8s.io", p.namespace ?? ns, p.name) : undefined,
    );
  }
  add(F.hosts, (o.spec?.hostnames ?? []).join(", "));
  for (const r of o.spec?.rules ?? []) {
    const matches = (r.matches ?? [{}]).map((m: Obj) =>
      [
        m.method && typeof m.method === "string" ? m.method : "",
        m.path ? m.path.value : typeof m.method === "object" ? `${m.method.service ?? "*"}/${m.method.method ?? "*"}` : "/",
      ]
        .filter(Boolean)
        .join(" "),
    );
    const backends: Obj[] = r.backendRefs ?? [];
    if (!backends.length) add(S.fact.backend, `${matches.join(", ")} → ${(r.filters ?? []).map((f: Obj) => f.type).join(", ")}`);
    for (const b of backends) {
      const text = `${matches.join(", ")} → ${b.namespace ? b.namespace + "/" : ""}${b.name}:${b.port ?? ""}${b.weight !== undefined && backends.length > 1 ? F.weight(b.weight) : ""}`;
      add(S.fact.backend, text, (b.kind ?? "Service") === "Service" ? to("services", b.namespace ?? ns, b.name) : undefined);
    }
  }
  for (const p of o.status?.parents ?? []) {
    for (const c of p.conditions ?? [])
      if (c.status !== "True") add(c.type, `${p.parentRef?.name}: ${c.reason}: ${c.message}`, undefined, "bad");
  }
}

/** inner is the part of a metric that its type names. */
function inner(m: Obj | undefined): Obj | undefined {
  return m && (m.resource ?? m.containerResource ?? m.pods ?? m.object ?? m.external);
}

function nameOfMetric(m: Obj): string {
  const i = inner(m);
  return [i?.container, i?.name ?? i?.metric?.name ?? m.type].filter(Boolean).join(" ");
}

function amount(v: Obj | undefined): string {
  if (!v) return F.unknown;
  return v.averageUtilization !== undefined
    ? `${v.averageUtilization} %${v.averageValue ? ` (${v.averageValue})` : ""}`
    : (v.averageValue ?? v.value ?? F.unknown);
}

function podsText(selector: Obj | undefined): string {
  const text = selectorText(selector as any);
  return text ? F.podsWith(text) : F.allPods;
}

function ruleText(peers: Obj[] | undefined, ports: Obj[] | undefined, inward: boolean): string {
  const who = !peers?.length
    ? F.anybody
    : peers
        .map((p) => {
          if (p.ipBlock) return p.ipBlock.cidr + (p.ipBlock.except?.length ? F.except(p.ipBlock.except.join(", ")) : "");
          const pods = podsText(p.podSelector);
          if (!p.namespaceSelector) return pods + F.here;
          const spaces = selectorText(p.namespaceSelector);
          return pods + (spaces ? F.inNamespaces(spaces) : F.everywhere);
        })
        .join(F.or);
  const where = (ports ?? []).map((p) => `${p.protocol ?? "TCP"} ${p.port ?? F.allPorts}${p.endPort ? "–" + p.endPort : ""}`).join(", ");
  return inward ? F.from(who, where) : F.to(who, where);
}
