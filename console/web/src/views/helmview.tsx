// SPDX-License-Identifier: Apache-2.0

// Helm's releases: the list of them, and one with its history.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { reasonOf, send } from "../api/client";
import { useKeys } from "../base/keys";
import { helmCommand } from "../model/kubectl";
import { refusal } from "../api/permissions";
import { announce } from "../base/announce";
import { kindByWord, kinds } from "../api/kinds";
import { now } from "../model/listing";
import { chooseNamespace } from "../actions/namespaces";
import { RelatedTable } from "../widgets/related";
import { back, format, namespace, route } from "../api/route";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { age, visible, visibleLines, when } from "../base/text";
import type { Tone } from "../base/tones";
import { compare, HelmShell, rollBack, uninstall } from "./helmchange";
import { useReread } from "../model/wholelist";

interface ReleaseRow {
  name: string;
  namespace: string;
  revision: number;
  status: string;
  chart?: string;
  version?: string;
  appVersion?: string;
  updated?: string;
  description?: string;
  driver: string;
  trouble?: string;
}

interface Release extends ReleaseRow {
  history: ReleaseRow[];
  notes?: string;
  values?: string;
  computed?: string;
  manifest?: string;
}

function toneOf(status: string): Tone {
  return status === "deployed"
    ? "good"
    : status === "failed"
      ? "bad"
      : status.startsWith("pending") || status === "uninstalling"
        ? "passing"
        : "";
}

function hrefOfRelease(r: ReleaseRow): string {
  return format({
    view: "helm",
    kind: "releases",
    ns: r.namespace,
    name: r.name,
    params: r.driver === "secrets" ? {} : { driver: r.driver },
  });
}

/** changes are those of the objects that have the releases: rows without what is in them. */
const OWNED = { labelSelector: "owner=helm" };

export function HelmView() {
  const r = route.value;
  if (kinds.value.length === 0) return <p class="empty">{S.loading}</p>;
  if (!r.name) return <Releases key={namespace.value} ns={namespace.value} />;
  return <ReleaseOf key={r.ns + "/" + r.name + r.params.driver} ns={r.ns} name={r.name} driver={r.params.driver || "secrets"} />;
}

function Releases({ ns }: { ns: string }) {
  const answer = useReread(kindByWord("secrets"), ns, OWNED, () =>
    send<{ releases: ReleaseRow[]; partial: string[] }>("GET", "/helm?" + new URLSearchParams({ namespace: ns })),
  );
  useKeys([
    { key: "j ArrowDown", label: S.keys.down, run: () => focusRow(1), hint: true },
    { key: "k ArrowUp", label: S.keys.up, run: () => focusRow(-1), hint: true },
    { key: "n", label: S.keys.namespace, run: () => void chooseNamespace(), hint: true },
    { key: "Escape", label: S.keys.back, run: back, hint: true },
  ]);
  const charts = kindByWord("helmcharts");
  const { value, error } = answer.value;
  return (
    <section class="view" aria-label={M.helm.title}>
      <div class="bar">
        <h1>
          {M.helm.title}{" "}
          <span class="count" role="status">
            {value ? value.releases.length : "…"}
          </span>
        </h1>
        <span class="faint">{S.overview.scope(ns)}</span>
        {charts && (
          <div class="tools">
            <a href={format({ view: "list", kind: charts.id })}>{M.helm.charts}</a>
          </div>
        )}
      </div>
      <div class="pane scroll">
        {error && (
          <div class="problem" role="alert">
            <p>{visible(error)}</p>
            <button type="button" onClick={() => void chooseNamespace()}>
              {S.list.otherNamespace}
            </button>
          </div>
        )}
        {value?.partial.map((p) => (
          <p key={p} class="passing">
            {visible(p)}
          </p>
        ))}
        {value && value.releases.length === 0 && !error && <p class="empty">{M.helm.none}</p>}
        {value && value.releases.length > 0 && <Rows rows={value.releases} full />}
      </div>
    </section>
  );
}

function focusRow(by: number): void {
  const links = [...document.querySelectorAll<HTMLElement>(".releases a")];
  const at = links.indexOf(document.activeElement as HTMLElement);
  links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
}

/** Rows are releases, or the revisions of one. */
function Rows({ rows, full, shown }: { rows: ReleaseRow[]; full?: boolean; shown?: number }) {
  const columns = full ? M.helm.columns : M.helm.historyColumns;
  return (
    <table class="plain stack releases">
      <thead>
        <tr>
          {columns.map((c) => (
            <th key={c} scope="col">
              {c}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {rows.map((r) => (
          <tr key={r.driver + r.namespace + "/" + r.name + r.revision} aria-current={r.revision === shown ? "true" : undefined}>
            {full && <td>{visible(r.namespace)}</td>}
            {full && (
              <td>
                <a href={hrefOfRelease(r)}>{visible(r.name)}</a>
              </td>
            )}
            <td>
              {full || r.revision === shown ? (
                r.revision
              ) : (
                <a
                  href={format({
                    view: "helm",
                    kind: "releases",
                    ns: r.namespace,
                    name: r.name,
                    params: { ...(r.driver === "secrets" ? {} : { driver: r.driver }), revision: String(r.revision) },
                  })}
                >
                  {r.revision}
                </a>
              )}
            </td>
            <td class={toneOf(r.status)}>{visible(r.status)}</td>
            <td>{r.trouble ? <span class="bad">{visible(r.trouble)}</span> : visible([r.chart, r.version].filter(Boolean).join(" "))}</td>
            <td>{visible(r.appVersion)}</td>
            <td>{r.updated ? S.overview.ago(age(r.updated, now.value)) : ""}</td>
            {!full && <td>{visible(r.description)}</td>}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function ReleaseOf({ ns, name, driver }: { ns: string; name: string; driver: string }) {
  const wanted = route.value.params.revision ?? "";
  return <Revision key={wanted} ns={ns} name={name} driver={driver} wanted={wanted} />;
}

function Revision({ ns, name, driver, wanted }: { ns: string; name: string; driver: string; wanted: string }) {
  const path = "/helm/release?" + new URLSearchParams({ namespace: ns, name, driver, revision: wanted });
  const answer = useReread(kindByWord(driver), ns, { labelSelector: "owner=helm,name=" + name }, () => send<Release>("GET", path));
  const content = useSignal<Release | null>(null);
  const failed = useSignal("");
  const show = () => {
    failed.value = "";
    send<Release>("GET", path + "&content=true").then(
      (r) => (content.value = r),
      (err: unknown) => (failed.value = reasonOf(err)),
    );
  };
  const at = { ns, name, driver };
  const records = kindByWord(driver);
  const may = (verb: string) => (records ? refusal(verb, records, ns) : "");
  const actions = [
    { key: "u", label: M.helm.rollback, why: may("create"), danger: false, run: () => rollBack(at, Number(wanted)) },
    { key: "c", label: M.helm.compare, why: "", danger: false, run: () => compare(at, Number(wanted)) },
    { key: "x", label: M.helm.uninstall, why: may("delete"), danger: true, run: () => uninstall(at) },
  ];
  const perform = (a: (typeof actions)[number]) => (a.why ? announce(a.why, true) : a.run());
  useKeys([
    ...actions.map((a) => ({ key: a.key, label: a.label, run: () => perform(a), hint: true })),
    { key: "Escape", label: S.keys.back, run: back, hint: true },
  ]);
  useEffect(() => {
    if (document.activeElement === document.body) document.querySelector<HTMLElement>(".release")?.focus({ preventScroll: true });
  }, []);
  const { value: r, error } = answer.value;
  // What was shown of another revision is not this one's.
  const text = content.value?.revision === r?.revision ? content.value : null;
  const charts = kindByWord("helmcharts");
  const before = r?.history.find((h) => h.revision < r.revision);
  return (
    <section class="view release" tabIndex={-1} aria-label={M.helm.release(name)}>
      <div class="bar">
        <h1>
          <a href={format({ view: "helm" })} class="faint">
            {M.helm.title}
          </a>{" "}
          <span class="faint">{visible(ns)}/</span>
          <span class="name">{visible(name)}</span>
        </h1>
        <div class="tools">
          {actions.map((a) => (
            <button
              key={a.key}
              type="button"
              class={a.danger ? "danger" : ""}
              aria-disabled={!!a.why}
              title={a.why || `${a.label} (${a.key})`}
              onClick={() => perform(a)}
            >
              {a.label}
            </button>
          ))}
        </div>
      </div>
      {error && (
        <div class="problem" role="alert">
          <p>{visible(error)}</p>
        </div>
      )}
      {!r && !error && <p class="empty">{S.loading}</p>}
      {r && (
        <div class="pane scroll">
          <dl class="facts">
            {(
              [
                [M.helm.columns[2], String(r.revision), ""],
                [M.helm.columns[3], r.status, toneOf(r.status)],
                [M.helm.columns[4], [r.chart, r.version].filter(Boolean).join(" "), ""],
                [M.helm.columns[5], r.appVersion ?? "", ""],
                [M.helm.columns[6], r.updated ? when(r.updated, now.value) : "", ""],
                [M.helm.description, r.description ?? r.trouble ?? "", r.trouble ? "bad" : ""],
              ] as const
            ).map(
              ([k, v, tone]) =>
                v && (
                  <div key={k}>
                    <dt>{k}</dt>
                    <dd class={tone}>{visible(v)}</dd>
                  </div>
                ),
            )}
          </dl>
          <section class="related">
            <h2>{M.helm.history}</h2>
            <Rows rows={r.history} shown={r.revision} />
          </section>
          <section class="related">
            <h2>{M.helm.change}</h2>
            <HelmShell text={before ? helmCommand("rollback", [r.name, String(before.revision)], ns, driver) : ""} />
            <HelmShell text={helmCommand("uninstall", [r.name], ns, driver)} />
          </section>
          {charts && (
            <RelatedTable relation={{ title: M.helm.managed, kind: charts, ns: "", query: {}, match: (row) => row.name === name }} />
          )}
          <section class="related">
            <h2>{M.helm.content}</h2>
            {failed.value && (
              <p class="bad" role="alert">
                {visible(failed.value)}
              </p>
            )}
            {text ? (
              (
                [
                  [M.helm.values, text.values],
                  [M.helm.computed, text.computed],
                  [M.helm.notes, text.notes],
                  [M.helm.manifest, text.manifest],
                ] as const
              ).map(([title, t]) => (
                <details key={title} open={title !== M.helm.manifest && title !== M.helm.computed}>
                  <summary>{title}</summary>
                  {t ? (
                    <pre class="data" tabIndex={0} aria-label={title}>
                      {visibleLines(t)}
                    </pre>
                  ) : (
                    <p class="faint">{S.related.none}</p>
                  )}
                </details>
              ))
            ) : (
              <>
                <p>{M.helm.hidden}</p>
                <button type="button" onClick={show}>
                  {M.helm.show}
                </button>
              </>
            )}
          </section>
        </div>
      )}
    </section>
  );
}
