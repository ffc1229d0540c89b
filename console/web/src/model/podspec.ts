// SPDX-License-Identifier: Apache-2.0

// What a pod, or the template of one, asks for, in the words of `kubectl describe`: environment, mounts, probes,
// volumes, tolerations.

type Obj = Record<string, any>;

/** Detail is a line; ref is the object that it names, in the pod's namespace. */
export interface Detail {
  name: string;
  value: string;
  ref?: Ref;
}

export interface Ref {
  resource: "configmaps" | "secrets" | "persistentvolumeclaims";
  name: string;
}

const NAMES = { configmaps: "ConfigMap", secrets: "Secret", persistentvolumeclaims: "claim" };

function refer(resource: Ref["resource"], name: string, before = "", after = ""): { value: string; ref: Ref } {
  return { value: `${before}${NAMES[resource]} ${name}${after}`, ref: { resource, name } };
}

const optional = (x: Obj): string => (x.optional ? ", if it is there" : "");

/** environment lists what a container's variables are, and where their values come from. */
export function environment(c: Obj): Detail[] {
  const out: Detail[] = [];
  for (const f of c.envFrom ?? []) {
    const name = (f.prefix ?? "") + "*";
    if (f.configMapRef) out.push({ name, ...refer("configmaps", f.configMapRef.name, "all of ", optional(f.configMapRef)) });
    if (f.secretRef) out.push({ name, ...refer("secrets", f.secretRef.name, "all of ", optional(f.secretRef)) });
  }
  for (const e of c.env ?? []) {
    const from = e.valueFrom;
    if (from?.configMapKeyRef) {
      const r = from.configMapKeyRef;
      out.push({ name: e.name, ...refer("configmaps", r.name, `${r.key} of `, optional(r)) });
    } else if (from?.secretKeyRef) {
      const r = from.secretKeyRef;
      out.push({ name: e.name, ...refer("secrets", r.name, `${r.key} of `, optional(r)) });
    } else if (from?.fieldRef) {
      out.push({ name: e.name, value: `field ${from.fieldRef.fieldPath}` });
    } else if (from?.resourceFieldRef) {
      const r = from.resourceFieldRef;
      out.push({ name: e.name, value: `${r.resource}${r.containerName ? ` of ${r.containerName}` : ""}` });
    } else if (from?.fileKeyRef) {
      const r = from.fileKeyRef;
      out.push({ name: e.name, value: `${r.key} of file ${r.path} in volume ${r.volumeName}` });
    } else out.push({ name: e.name, value: e.value ?? "" });
  }
  return out;
}

/** volumes says what each volume of a pod is. */
export function volumes(spec: Obj): Detail[] {
  return (spec.volumes ?? []).map((v: Obj) => ({ name: v.name, ...volume(v) }));
}

function volume(v: Obj): Omit<Detail, "name"> {
  if (v.configMap) return refer("configmaps", v.configMap.name, "", optional(v.configMap));
  if (v.secret) return refer("secrets", v.secret.secretName, "", optional(v.secret));
  if (v.persistentVolumeClaim)
    return refer("persistentvolumeclaims", v.persistentVolumeClaim.claimName, "", v.persistentVolumeClaim.readOnly ? ", read only" : "");
  if (v.emptyDir)
    return {
      value: ["empty", v.emptyDir.medium === "Memory" && "in memory", v.emptyDir.sizeLimit && `at most ${v.emptyDir.sizeLimit}`]
        .filter(Boolean)
        .join(", "),
    };
  if (v.hostPath) return { value: `the node's ${v.hostPath.path}${v.hostPath.type ? ` (${v.hostPath.type})` : ""}` };
  if (v.projected) return projected(v.projected.sources ?? []);
  if (v.downwardAPI) return { value: "fields of the pod" };
  if (v.csi) return { value: `csi ${v.csi.driver}` };
  if (v.nfs) return { value: `nfs ${v.nfs.server}:${v.nfs.path}` };
  if (v.ephemeral) return { value: "a claim that lives as long as the pod" };
  if (v.image) return { value: `image ${v.image.reference}` };
  return { value: Object.keys(v).find((k) => k !== "name") ?? "" };
}

/** projected links the only object that it has, if it has one only. */
function projected(sources: Obj[]): Omit<Detail, "name"> {
  const refs: Ref[] = [];
  const texts = sources.map((s) => {
    if (s.configMap) refs.push({ resource: "configmaps", name: s.configMap.name });
    if (s.secret) refs.push({ resource: "secrets", name: s.secret.name });
    if (s.configMap) return `ConfigMap ${s.configMap.name}`;
    if (s.secret) return `Secret ${s.secret.name}`;
    if (s.serviceAccountToken) return "token of the service account";
    return s.downwardAPI ? "fields of the pod" : Object.keys(s)[0];
  });
  return { value: texts.join(", "), ref: refs.length === 1 ? refs[0] : undefined };
}

/** mounts says where a container has which volume. */
export function mounts(c: Obj, spec: Obj): Detail[] {
  const of = new Map(volumes(spec).map((v) => [v.name, v]));
  const out: Detail[] = [];
  for (const m of c.volumeMounts ?? []) {
    const v = of.get(m.name);
    const more = [m.subPath && `only ${m.subPath}`, m.subPathExpr && `only ${m.subPathExpr}`, m.readOnly && "read only"].filter(Boolean);
    out.push({ name: m.mountPath, value: [`${m.name}: ${v?.value ?? ""}`, ...more].join(", "), ref: v?.ref });
  }
  for (const d of c.volumeDevices ?? []) out.push({ name: d.devicePath, value: `${d.name}, as a device`, ref: of.get(d.name)?.ref });
  return out;
}

/** probes says how a container is asked whether it lives, is ready, and has started. */
export function probes(c: Obj): Detail[] {
  const out: Detail[] = [];
  for (const [name, p] of [
    ["Startup", c.startupProbe],
    ["Liveness", c.livenessProbe],
    ["Readiness", c.readinessProbe],
  ] as [string, Obj | undefined][]) {
    if (!p) continue;
    const fails = p.failureThreshold ?? 3;
    const times = [
      p.initialDelaySeconds && `after ${p.initialDelaySeconds} s`,
      `each ${p.periodSeconds ?? 10} s`,
      `within ${p.timeoutSeconds ?? 1} s`,
      (p.successThreshold ?? 1) > 1 && `good after ${p.successThreshold}`,
      fails === 1 ? "bad after 1 failure" : `bad after ${fails} failures`,
    ].filter(Boolean);
    out.push({ name, value: `${asked(p)}, ${times.join(", ")}` });
  }
  return out;
}

function asked(p: Obj): string {
  if (p.httpGet)
    return `GET ${(p.httpGet.scheme ?? "HTTP").toLowerCase()}://${p.httpGet.host ?? ""}:${p.httpGet.port}${p.httpGet.path ?? "/"}`;
  if (p.tcpSocket) return `connects to ${p.tcpSocket.host ?? ""}:${p.tcpSocket.port}`;
  if (p.grpc) return `grpc at :${p.grpc.port}${p.grpc.service ? ` ${p.grpc.service}` : ""}`;
  return `runs ${command(p.exec?.command)}`;
}

/** command writes words so that each one's ends can be seen. */
export function command(words: string[] | undefined): string {
  return (words ?? []).map((w) => (/^[\w@%+=:,./-]+$/.test(w) ? w : JSON.stringify(w))).join(" ");
}

export function tolerations(spec: Obj): string[] {
  return (spec.tolerations ?? []).map((t: Obj) => {
    const key = t.key ? t.key + (t.operator === "Exists" ? "" : t.value ? "=" + t.value : "") : "every taint";
    const what = key + (t.effect ? ":" + t.effect : "");
    return t.tolerationSeconds === undefined ? what : `${what} for ${t.tolerationSeconds} s`;
  });
}

/** podSpecOf is the specification of a pod, or of the pods that an object makes. */
export function podSpecOf(o: Obj): Obj | undefined {
  if (o.kind === "Pod") return o.spec;
  const spec = (o.spec?.jobTemplate?.spec ?? o.spec)?.template?.spec;
  return Array.isArray(spec?.containers) ? spec : undefined;
}
