// SPDX-License-Identifier: Apache-2.0

// One object: what it is, its YAML, its events and what belongs to it. It follows the object's changes.

import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { ACTIONS, perform } from "../actions/actions";
import { Toolbar } from "../actions/toolbar";
import { factsOf } from "../model/facts";
import { useKeys } from "../base/keys";
import { isKind, type Kind, kindById, kinds, label, objectPath, plainPath } from "../api/kinds";
import { lazy } from "../widgets/lazy";
import { now } from "../model/listing";
import { eventsOf, RelatedTable, relationsOf } from "../widgets/related";
import { hasMap } from "../model/mapped";
import { back, format, go, route, setParams } from "../api/route";
import { SecretData } from "../widgets/secret";
import { S } from "../base/strings";
import { Empty } from "../widgets/table";
import { age, visible, visibleLines } from "../base/text";
import type { Target } from "../model/target";
import { stateOfObject } from "../model/toolbar";
import { copy } from "../base/clipboard";
import { wasExpected } from "../model/gone";
import { useObject } from "../model/useobject";

export function ObjectView() {
  const r = route.value;
  const k = kindById(r.kind);
  if (!k) return kinds.value.length ? <Empty text={S.list.noKind(r.kind)} /> : <p class="empty">{S.loading}</p>;
  return <ObjectOf key={k.id + r.ns + "/" + r.name} kind={k} ns={r.ns} name={r.name} />;
}

const Usage = lazy<{ object: Record<string, any> }>(() => import("./usage").then((m) => m.Usage), true);

const Sections = lazy<{ kind: Kind; object: Record<string, any> }>(() => import("./moreviews").then((m) => m.Sections), true);

const Waiting = lazy<{ kind: Kind; object: Record<string, any> }>(() => import("./moreviews").then((m) => m.Waiting), true);

const TABS = ["details", "yaml", "events"] as const;

function ObjectOf({ kind, ns, name }: { kind: Kind; ns: string; name: string }) {
  const path = objectPath(kind, ns, name);
  const state = useObject(path);
  const { object, yaml, deleted, missing, error, trouble } = state.value;
  const uid: string | undefined = object?.metadata.uid;
  const tab = route.value.params.tab ?? "details";
  const target: Target = { kind, ns, name, uid, object: object ?? undefined };
  const actions = ACTIONS.filter((a) => a.applies(kind));
  const map = hasMap(kind) ? [{ id: "map", key: "m", label: S.views.map, run: () => go({ view: "map", kind: kind.id, ns, name }) }] : [];
  const setTab = (t: string) => setParams({ tab: t === "details" ? "" : t });

  useKeys([
    { key: "d", label: S.keys.details, run: () => setTab("details"), hint: true },
    { key: "y", label: S.keys.yaml, run: () => setTab("yaml"), hint: true },
    { key: "v", label: S.keys.events, run: () => setTab("events"), hint: true },
    ...actions.map((a) => ({ key: a.key, label: a.label, hint: true, run: () => perform(a, [target]) })),
    ...map.map((m) => ({ ...m, hint: true })),
    { key: "c", label: S.keys.copy, run: () => void copy(yaml), hint: tab === "yaml" },
    { key: "Escape", label: S.keys.back, run: back, hint: true },
  ]);
  useEffect(() => {
    if (document.activeElement === document.body) document.querySelector<HTMLElement>(".object")?.focus({ preventScroll: true });
  }, []);

  // Who has deleted it has no use for a page about nothing.
  useEffect(() => {
    if ((deleted || missing) && wasExpected(plainPath(path), uid)) back();
  }, [deleted, missing]);

  return (
    <section class="view object" tabIndex={-1} aria-label={`${kind.kind} ${name}`}>
      <div class="bar">
        <h1>
          <a href={format({ view: "list", kind: kind.id })} class="faint" title={label(kind)}>
            {kind.singular || kind.resource}
          </a>{" "}
          {ns && <span class="faint">{visible(ns)}/</span>}
          <span class="name">{visible(name)}</span>
        </h1>
        <Toolbar kind={kind} actions={actions} targets={[target]} state={object && stateOfObject(object)} more={map} />
      </div>
      <div class="tabs" role="tablist">
        {TABS.map((t) => (
          <button key={t} type="button" role="tab" aria-selected={t === tab} onClick={() => setTab(t)}>
            {S.object.tab[t]}
          </button>
        ))}
      </div>
      {deleted && (
        <p class="note passing" role="status">
          {S.object.deleted}
        </p>
      )}
      {object?.metadata.deletionTimestamp && !deleted && <Waiting kind={kind} object={object} />}
      {trouble && <p class="note passing">{visible(trouble)}</p>}
      {error && (
        <div class="problem" role="alert">
          <p>{visible(error)}</p>
        </div>
      )}
      {!object && !error && <p class="empty">{S.loading}</p>}
      {object && tab === "details" && <Details kind={kind} object={object} />}
      {object && tab === "yaml" && <Yaml kind={kind} yaml={yaml} />}
      {object && tab === "events" && <Events object={object} />}
    </section>
  );
}

function Yaml({ kind, yaml }: { kind: Kind; yaml: string }) {
  const shown = useSignal(!isKind(kind, "", "secrets"));
  if (!shown.value) {
    return (
      <div class="pane">
        <p>{S.secret.hidden}</p>
        <button type="button" onClick={() => (shown.value = true)}>
          {S.secret.showYaml}
        </button>
      </div>
    );
  }
  return (
    <div class="pane scroll" tabIndex={0} role="region" aria-label={S.object.tab.yaml}>
      <button type="button" class="float" onClick={() => void copy(yaml)}>
        {S.copy}
      </button>
      <pre>{visibleLines(yaml)}</pre>
    </div>
  );
}

function Events({ object }: { object: Record<string, any> }) {
  const relation = useMemo(() => eventsOf(object), [object.metadata.uid]);
  return <div class="pane scroll">{relation && <RelatedTable key={object.metadata.uid} relation={relation} />}</div>;
}

function Details({ kind, object }: { kind: Kind; object: Record<string, any> }) {
  const relations = useMemo(() => relationsOf(kind, object), [object.metadata.uid]);
  const events = useMemo(() => eventsOf(object), [object.metadata.uid]);
  const secret = isKind(kind, "", "secrets");
  const annotations = Object.entries((object.metadata.annotations ?? {}) as Record<string, string>).filter(
    ([k]) => k !== "kubectl.kubernetes.io/last-applied-configuration",
  );
  return (
    <div class="pane scroll" tabIndex={0} role="region" aria-label={S.object.tab.details}>
      <dl class="facts">
        {factsOf(kind, object, now.value).map((f, i) => (
          <div key={i}>
            <dt>{visible(f.name)}</dt>
            <dd class={f.tone}>{f.href ? <a href={f.href}>{visible(f.value)}</a> : visible(f.value)}</dd>
          </div>
        ))}
        <Map name={S.fact.labels} entries={Object.entries(object.metadata.labels ?? {})} />
        <Map name={S.fact.annotations} entries={annotations} />
      </dl>
      <Sections key={"sections" + object.metadata.uid} kind={kind} object={object} />
      <Conditions object={object} />
      {isKind(kind, "", "pods", "nodes") && <Usage key={object.metadata.uid} object={object} />}
      {secret ? <SecretData data={object.data ?? {}} /> : isKind(kind, "", "configmaps") && <ConfigData data={object.data ?? {}} />}
      {relations.map((r) => (
        <RelatedTable key={r.kind.id + r.title + object.metadata.uid} relation={r} />
      ))}
      {events && <RelatedTable key={"events" + object.metadata.uid} relation={events} />}
    </div>
  );
}

/** LONG is how many characters of an annotation are shown without being asked for. */
const LONG = 200;

function Map({ name, entries }: { name: string; entries: [string, unknown][] }) {
  if (entries.length === 0) return null;
  return (
    <div>
      <dt>{name}</dt>
      <dd>
        {entries.map(([k, v]) =>
          String(v).length > LONG ? (
            <details key={k}>
              <summary>
                {visible(k)} <span class="faint">{S.object.characters(String(v).length)}</span>
              </summary>
              {visible(v)}
            </details>
          ) : (
            <span key={k} class="label">
              {visible(k)}={visible(v)}
            </span>
          ),
        )}
      </dd>
    </div>
  );
}

/** BAD_WHEN_TRUE are conditions that are good when they are false. */
const BAD_WHEN_TRUE = /Pressure$|Unavailable$|Failure$|^Failed$|Stalled|Degraded/;

function Conditions({ object }: { object: Record<string, any> }) {
  const list = (object.status?.conditions ?? []) as Record<string, string>[];
  if (!Array.isArray(list) || list.length === 0) return null;
  return (
    <section class="related">
      <h2>{S.object.conditions}</h2>
      <table class="plain">
        <thead>
          <tr>
            {S.object.conditionColumns.map((c) => (
              <th key={c} scope="col">
                {c}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {list.map((c) => {
            const bad = c.status === "Unknown" || (c.status === "True") === BAD_WHEN_TRUE.test(c.type);
            return (
              <tr key={c.type}>
                <td>{visible(c.type)}</td>
                <td class={bad ? "bad" : "good"}>{visible(c.status)}</td>
                <td>{c.lastTransitionTime ? age(c.lastTransitionTime, now.value) : ""}</td>
                <td>{visible(c.reason)}</td>
                <td>{visible(c.message)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}

function ConfigData({ data }: { data: Record<string, string> }) {
  return (
    <section class="related">
      <h2>{S.object.data}</h2>
      {Object.entries(data).map(([k, v]) => (
        <details key={k} open={v.length < 2000}>
          <summary>{visible(k)}</summary>
          <pre class="data">{visibleLines(v)}</pre>
        </details>
      ))}
    </section>
  );
}
