// SPDX-License-Identifier: Apache-2.0

// What the page of an object shows beside facts, conditions and tables of others: the rules of a role, the bars of a
// quota, the values of a chart, the next run of a schedule, the pods that use something.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { reasonOf, send } from "../api/client";
import { extraFacts } from "../model/extrafacts";
import { isKind, type Kind, kindByWord, objectPath } from "../api/kinds";
import { now } from "../model/listing";
import { quantity } from "../base/quantity";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { ahead, visible, visibleLines } from "../base/text";
import { hrefOf } from "../api/route";
import { behind } from "../model/behind";
import { useWholeList } from "../model/wholelist";
import { PodSections } from "./podsections";
import { useObject } from "../model/useobject";
import { InUse } from "./inuse";

type Obj = Record<string, any>;

const RBAC = "rbac.authorization.k8s.io";

export function Sections({ kind, object }: { kind: Kind; object: Obj }) {
  const facts = extraFacts(kind, object, now.value);
  const values = isKind(kind, "helm.cattle.io", "helmcharts", "helmchartconfigs") && object.spec?.valuesContent;
  return (
    <>
      {facts.length > 0 && (
        <dl class="facts">
          {facts.map((f, i) => (
            <div key={i}>
              <dt>{visible(f.name)}</dt>
              <dd class={f.tone}>{f.href ? <a href={f.href}>{visible(f.value)}</a> : visible(f.value)}</dd>
            </div>
          ))}
          {isKind(kind, "batch", "cronjobs") && !object.spec?.suspend && (
            <Next schedule={object.spec?.schedule ?? ""} zone={object.spec?.timeZone ?? ""} />
          )}
        </dl>
      )}
      <InUse kind={kind} object={object} />
      {isKind(kind, "", "resourcequotas") && (
        <Quota hard={object.status?.hard ?? object.spec?.hard ?? {}} used={object.status?.used ?? {}} />
      )}
      {isKind(kind, RBAC, "roles", "clusterroles") && <Rules rules={object.rules ?? []} />}
      {isKind(kind, RBAC, "rolebindings", "clusterrolebindings") && (
        <>
          <Subjects subjects={object.subjects ?? []} ns={object.metadata.namespace ?? ""} />
          <RulesOf role={object.roleRef ?? {}} ns={object.metadata.namespace ?? ""} />
        </>
      )}
      {isKind(kind, "", "services") && <Behind service={object} />}
      <PodSections object={object} />
      {values && (
        <section class="related">
          <h2>{M.helm.valuesTitle}</h2>
          <pre class="data">{visibleLines(String(values))}</pre>
        </section>
      )}
      {isKind(kind, "", "configmaps", "secrets", "persistentvolumeclaims", "serviceaccounts") && (
        <UsedBy resource={kind.resource} ns={object.metadata.namespace} name={object.metadata.name} />
      )}
    </>
  );
}

/** Behind says whether anything answers behind a Service. */
function Behind({ service }: { service: Obj }) {
  const slices = useWholeList(kindByWord("endpointslices"), service.metadata.namespace, {
    labelSelector: "kubernetes.io/service-name=" + service.metadata.name,
  });
  const { value } = slices.value;
  const state = value && behind(service, value);
  return state ? (
    <p class={"note " + state.tone} role="status">
      {visible(state.text)}
    </p>
  ) : null;
}

/** Next is when a schedule runs next, by the console's server: it reads schedules as Kubernetes does. */
function Next({ schedule, zone }: { schedule: string; zone: string }) {
  const next = useSignal("");
  useEffect(() => {
    let closed = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const read = () =>
      send<{ next: string }>("GET", "/schedule?" + new URLSearchParams({ schedule, zone })).then(
        (r) => {
          if (closed) return;
          next.value = r.next;
          // A next run that is years away is not waited for.
          timer = setTimeout(read, Math.min(Math.max(Date.parse(r.next) - Date.now(), 0) + 1_000, 3_600_000));
        },
        (err: unknown) => !closed && (next.value = reasonOf(err)),
      );
    void read();
    return () => {
      closed = true;
      clearTimeout(timer);
    };
  }, [schedule, zone]);
  return next.value ? (
    <div>
      <dt>{M.extra.next}</dt>
      <dd>{visible(ahead(next.value, now.value))}</dd>
    </div>
  ) : null;
}

function Quota({ hard, used }: { hard: Record<string, string>; used: Record<string, string> }) {
  return (
    <section class="related">
      <h2>{M.extra.quota}</h2>
      <table class="plain">
        <thead>
          <tr>
            {M.extra.quotaColumns.map((c) => (
              <th key={c} scope="col">
                {c}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {Object.entries(hard).map(([k, most]) => {
            const share = quantity(most) > 0 ? quantity(used[k] ?? "0") / quantity(most) : quantity(used[k] ?? "0") > 0 ? 1 : 0;
            return (
              <tr key={k}>
                <td>{visible(k)}</td>
                <td class={share >= 1 ? "bad" : share >= 0.8 ? "passing" : ""}>{visible(used[k] ?? "0")}</td>
                <td>{visible(most)}</td>
                <td>
                  <meter aria-label={visible(k)} min={0} max={1} low={0.8} high={0.99} optimum={0} value={Math.min(1, share)} />{" "}
                  {Math.round(share * 100)} %
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}

function Rules({ rules }: { rules: Obj[] }) {
  const list = (x: string[] | undefined) => visible((x ?? []).join(", "));
  return (
    <section class="related">
      <h2>
        {M.extra.rules} <span class="count">{rules.length}</span>
      </h2>
      <table class="plain stack">
        <thead>
          <tr>
            {M.extra.ruleColumns.map((c) => (
              <th key={c} scope="col">
                {c}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rules.map((r, i) => (
            <tr key={i}>
              <td class={r.verbs?.includes("*") ? "passing" : ""}>{list(r.verbs)}</td>
              <td>{list(r.resources ?? r.nonResourceURLs)}</td>
              <td>{r.resources ? list(r.apiGroups?.map((g: string) => g || M.extra.core)) : ""}</td>
              <td>{list(r.resourceNames)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function RulesOf({ role, ns }: { role: Obj; ns: string }) {
  const k = kindByWord((role.kind === "Role" ? "roles." : "clusterroles.") + RBAC);
  return k && role.name ? <Followed path={objectPath(k, ns, role.name)} /> : null;
}

function Followed({ path }: { path: string }) {
  const { object, error } = useObject(path).value;
  if (error) return <p class="bad">{visible(error)}</p>;
  return object && <Rules rules={object.rules ?? []} />;
}

function Subjects({ subjects, ns }: { subjects: Obj[]; ns: string }) {
  const accounts = kindByWord("serviceaccounts");
  return (
    <section class="related">
      <h2>
        {M.extra.subjects} <span class="count">{subjects.length}</span>
      </h2>
      <table class="plain">
        <tbody>
          {subjects.map((s, i) => {
            const at = s.namespace ?? ns;
            return (
              <tr key={i}>
                <td>{visible(s.kind)}</td>
                <td>
                  {s.kind === "ServiceAccount" && accounts ? (
                    <a href={hrefOf(accounts, { ns: at, name: s.name })}>
                      {visible(at)}/{visible(s.name)}
                    </a>
                  ) : (
                    visible(s.name)
                  )}
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}

interface Use {
  /** resource is the kind's name and group, as kindByWord takes it. */
  resource: string;
  name: string;
  how: string;
}

interface Uses {
  users: Use[];
  /** partial are kinds that have more objects than were read; hidden are those that the user may not list. */
  partial: string[];
  hidden: string[];
}

/** UsedBy finds what uses an object, when it is asked to: pods and templates of the namespace are read for that. */
function UsedBy({ resource, ns, name }: { resource: string; ns: string; name: string }) {
  const uses = useSignal<Uses | null>(null);
  const error = useSignal("");
  const find = () => {
    error.value = "";
    send<Uses>("GET", "/usedby?" + new URLSearchParams({ resource, namespace: ns, name })).then(
      (r) => (uses.value = r),
      (err: unknown) => (error.value = reasonOf(err)),
    );
  };
  const found = uses.value;
  return (
    <section class="related">
      <h2>
        {M.extra.usedBy} {found && <span class="count">{found.users.length}</span>}
      </h2>
      {error.value && (
        <p class="bad" role="alert">
          {visible(error.value)}
        </p>
      )}
      <button type="button" onClick={find}>
        {found ? S.list.again : M.extra.find}
      </button>
      {found?.users.length === 0 && <p class="faint">{S.related.none}</p>}
      {found && found.partial.length > 0 && <p class="passing">{M.extra.partial(visible(found.partial.join(", ")))}</p>}
      {found && found.hidden.length > 0 && <p class="faint">{M.extra.unread(visible(found.hidden.join(", ")))}</p>}
      {found && (
        <table class="plain">
          <tbody>
            {found.users.map((u) => {
              const kind = kindByWord(u.resource);
              const text = `${kind?.singular || u.resource} ${u.name}`;
              return (
                <tr key={u.resource + u.name}>
                  <td>{kind ? <a href={hrefOf(kind, { ns, name: u.name })}>{visible(text)}</a> : visible(text)}</td>
                  <td>{visible(u.how)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      )}
    </section>
  );
}
