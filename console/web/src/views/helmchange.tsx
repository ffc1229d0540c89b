// SPDX-License-Identifier: Apache-2.0

// Dialogs of a release of Helm: the way back to a revision, the removal, and a comparison of two revisions. What would
// change is shown before anything is done.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { reasonOf, send } from "../api/client";
import { kinds } from "../api/kinds";
import { go, route } from "../api/route";
import { announce } from "../base/announce";
import { copy } from "../base/clipboard";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { visible, visibleLines } from "../base/text";
import { helmCommand } from "../model/kubectl";
import { Diff } from "../widgets/diff";
import { show } from "../widgets/dialog";

/** At is a release, and where it is kept. */
export interface At {
  ns: string;
  name: string;
  driver: string;
}

/** RevisionRow is what is needed of a revision to choose it. */
export interface RevisionRow {
  revision: number;
  status: string;
  chart?: string;
  version?: string;
}

interface HelmObject {
  kind: string;
  namespace?: string;
  name: string;
  kept?: boolean;
  events?: string[];
  manifest?: string;
}

interface Preview {
  shown: { revision: number; sum: string }[];
  values: string;
  computed: string;
  manifest: string;
  objects: HelmObject[];
  hooks: HelmObject[];
  removed?: HelmObject[];
  refusal: string;
}

/** HelmShell is a command for a shell, with a button that copies it; nothing when it cannot be written. */
export function HelmShell({ text }: { text: string }) {
  return text ? (
    <div class="command">
      <code>{visible(text)}</code>
      <div>
        <button type="button" aria-label={M.helm.copy(text)} onClick={() => void copy(text)}>
          {S.copy}
        </button>
      </div>
    </div>
  ) : null;
}

/** newestOf reads the revisions of a release as they are now. */
async function newestOf(at: At): Promise<{ revision: number; history: RevisionRow[] }> {
  return send("GET", "/helm/release?" + new URLSearchParams({ namespace: at.ns, name: at.name, driver: at.driver }));
}

/** open shows a dialog with the revisions of a release. */
function open(at: At, title: string, content: (history: RevisionRow[], close: () => void) => ComponentChildren): void {
  newestOf(at).then(
    ({ history }) => show({ title, wide: true, content: (close) => content(history, close) }),
    (err: unknown) => announce(S.actionFailed(at.name, reasonOf(err)), true),
  );
}

export function rollBack(at: At, shown: number): void {
  open(at, M.helm.rollbackTitle(at.name), (history, close) => <RollBack at={at} history={history} shown={shown} close={close} />);
}

export function uninstall(at: At): void {
  open(at, M.helm.uninstallTitle(at.name), (history, close) => <Uninstall at={at} newest={history[0].revision} close={close} />);
}

export function compare(at: At, shown: number): void {
  open(at, M.helm.compareTitle(at.name), (history, close) => <Compare at={at} history={history} shown={shown} close={close} />);
}

/** usePreview asks what a change would do; the newest question is the one whose answer counts. */
function usePreview(at: At, from: number, to: number): { preview: Preview | null; error: string } {
  const [state, setState] = useState<{ preview: Preview | null; error: string }>({ preview: null, error: "" });
  const newest = useRef(0);
  useEffect(() => {
    const mine = ++newest.current;
    setState({ preview: null, error: "" });
    const query = new URLSearchParams({ namespace: at.ns, name: at.name, driver: at.driver, from: String(from), to: to ? String(to) : "" });
    send<Preview>("GET", "/helm/change?" + query).then(
      (preview) => mine === newest.current && setState({ preview, error: "" }),
      (err: unknown) => mine === newest.current && setState({ preview: null, error: reasonOf(err) }),
    );
  }, [from, to]);
  return state;
}

/** run makes the change that was shown. It goes on when the page is closed. */
async function run(at: At, preview: Preview, done?: () => void): Promise<void> {
  announce(M.helm.running(at.name));
  try {
    const { message } = await send<{ message: string }>("POST", "/helm/change", {
      namespace: at.ns,
      name: at.name,
      driver: at.driver,
      shown: preview.shown,
    });
    announce(message);
    done?.();
  } catch (err) {
    announce(S.actionFailed(at.name, reasonOf(err)), true);
  }
}

/** leave goes to the list of releases when the page is still that of a release that is gone. */
function leave(at: At): void {
  const r = route.peek();
  if (r.view === "helm" && r.name === at.name && r.ns === at.ns) go({ view: "helm" });
}

/** Waiting is what is shown in place of a preview that is not there. */
function Waiting({ error }: { error: string }) {
  return error ? (
    <p class="bad" role="alert">
      {visible(error)}
    </p>
  ) : (
    <p class="faint" role="status">
      {S.rollout.looking}
    </p>
  );
}

function Refusal({ text }: { text: string }) {
  return text ? (
    <p class="bad" role="alert">
      {visible(text)}
    </p>
  ) : null;
}

/** Differences are those between two revisions. The values that a chart computes are folded: they repeat the given ones. */
function Differences({ preview: p }: { preview: Preview }) {
  if (!p.values && !p.computed && !p.manifest) return <p role="status">{M.helm.same}</p>;
  return (
    <>
      {(
        [
          [M.helm.values, p.values, true],
          [M.helm.computed, p.computed, !p.values],
          [M.helm.manifestAndHooks, p.manifest, true],
        ] as const
      ).map(([title, text, isOpen]) => (
        <details key={title} open={isOpen && text !== ""}>
          <summary>
            {title} {text === "" && <span class="faint">{M.helm.unchanged}</span>}
          </summary>
          {text !== "" && <Diff text={text} />}
        </details>
      ))}
    </>
  );
}

/** note says what is remarkable about an object: it stays, or it is not in the namespace of the release. */
function note(o: HelmObject, ns: string): string {
  if (o.kept) return M.helm.kept;
  if (o.namespace ? o.namespace !== ns : kinds.value.some((k) => k.kind === o.kind && !k.namespaced)) return M.helm.elsewhere;
  return "";
}

function Objects({ title, objects, ns, isOpen }: { title: string; objects: HelmObject[]; ns: string; isOpen: boolean }) {
  if (objects.length === 0) return null;
  return (
    <details open={isOpen}>
      <summary>
        {title} ({objects.length})
      </summary>
      <ul class="targets" tabIndex={0} aria-label={title}>
        {objects.map((o, i) => {
          const remark = note(o, ns);
          return (
            <li key={i}>
              {visible(o.kind)} {visible((o.namespace ? o.namespace + "/" : "") + o.name)}
              {o.events && <span class="faint"> {visible(o.events.join(", "))}</span>}
              {remark && <strong class="passing"> {remark}</strong>}
              {o.manifest && (
                <details>
                  <summary>{M.helm.manifest}</summary>
                  <pre>{visibleLines(o.manifest)}</pre>
                </details>
              )}
            </li>
          );
        })}
      </ul>
    </details>
  );
}

function Choice({ label, history, value, set }: { label: string; history: RevisionRow[]; value: number; set: (n: number) => void }) {
  return (
    <label class="field">
      {label}
      <select value={value} onChange={(e) => set(Number(e.currentTarget.value))}>
        {history.map((h) => (
          <option key={h.revision} value={h.revision} selected={h.revision === value}>
            {visible([h.revision, h.status, h.chart, h.version].filter(Boolean).join(" "))}
          </option>
        ))}
      </select>
    </label>
  );
}

/** earlier is the revision to go back to: the one that is shown, or the newest that was whole. */
function earlier(history: RevisionRow[], shown: number): number {
  const older = history.slice(1);
  const wanted = older.find((h) => h.revision === shown) ?? older.find((h) => h.status === "superseded" || h.status === "deployed");
  return (wanted ?? older[0])?.revision ?? 0;
}

function Only({ text, close }: { text: string; close: () => void }) {
  return (
    <div>
      <p>{text}</p>
      <div class="buttons">
        <button type="button" data-first onClick={close}>
          {S.close}
        </button>
      </div>
    </div>
  );
}

interface Open {
  at: At;
  history: RevisionRow[];
  shown: number;
  close: () => void;
}

function RollBack({ at, history, shown, close }: Open) {
  const [to, setTo] = useState(earlier(history, shown));
  if (!to) return <Only text={M.helm.noEarlier} close={close} />;
  return <RollBackTo at={at} history={history} to={to} setTo={setTo} close={close} />;
}

function RollBackTo({ at, history, to, setTo, close }: Omit<Open, "shown"> & { to: number; setTo: (n: number) => void }) {
  const { preview, error } = usePreview(at, history[0].revision, to);
  const may = preview && !preview.refusal;
  const written = (preview?.objects ?? []).map((o) => ({ ...o, kept: false })); // that is of a removal
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (!may) return;
        close();
        void run(at, preview);
      }}
    >
      <Choice label={M.helm.backTo(history[0].revision)} history={history.slice(1)} value={to} set={setTo} />
      {preview ? (
        <>
          <Refusal text={preview.refusal} />
          <Differences preview={preview} />
          <Objects title={M.helm.hooks} objects={preview.hooks} ns={at.ns} isOpen />
          <Objects title={M.helm.removed} objects={preview.removed ?? []} ns={at.ns} isOpen />
          <Objects title={M.helm.written} objects={written} ns={at.ns} isOpen={written.some((o) => note(o, at.ns) !== "")} />
        </>
      ) : (
        <Waiting error={error} />
      )}
      <p class="faint">{M.helm.goesOn}</p>
      <HelmShell text={helmCommand("rollback", [at.name, String(to)], at.ns, at.driver)} />
      <div class="buttons">
        <button type="button" data-first onClick={close}>
          {S.cancel}
        </button>
        <button type="submit" class="primary" disabled={!may}>
          {M.helm.rollbackButton(to)}
        </button>
      </div>
    </form>
  );
}

function Uninstall({ at, newest, close }: { at: At; newest: number; close: () => void }) {
  const [typed, setTyped] = useState("");
  const { preview, error } = usePreview(at, newest, 0);
  const may = preview && !preview.refusal && typed === at.name;
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (!may) return;
        close();
        void run(at, preview, () => leave(at));
      }}
    >
      {preview ? (
        <>
          <Refusal text={preview.refusal} />
          <Objects title={M.helm.removed} objects={preview.objects.filter((o) => !o.kept)} ns={at.ns} isOpen />
          <Objects title={M.helm.stay} objects={preview.objects.filter((o) => o.kept)} ns={at.ns} isOpen />
          <Objects title={M.helm.hooks} objects={preview.hooks} ns={at.ns} isOpen />
        </>
      ) : (
        <Waiting error={error} />
      )}
      <p class="faint">{M.helm.goesOn}</p>
      <HelmShell text={helmCommand("uninstall", [at.name], at.ns, at.driver)} />
      <label class="field">
        {M.helm.typeName(visible(at.name))}
        <input type="text" autocomplete="off" spellcheck={false} value={typed} onInput={(e) => setTyped(e.currentTarget.value)} />
      </label>
      <div class="buttons">
        <button type="button" data-first onClick={close}>
          {S.cancel}
        </button>
        <button type="submit" class="danger" disabled={!may}>
          {M.helm.uninstall}
        </button>
      </div>
    </form>
  );
}

function Compare({ at, history, shown, close }: Open) {
  const [from, setFrom] = useState(earlier(history, shown) || history[0].revision);
  const [to, setTo] = useState(history[0].revision);
  const { preview, error } = usePreview(at, from, to);
  return (
    <div>
      <Choice label={M.helm.from} history={history} value={from} set={setFrom} />
      <Choice label={M.helm.to} history={history} value={to} set={setTo} />
      {preview ? <Differences preview={preview} /> : <Waiting error={error} />}
      <div class="buttons">
        <button type="button" data-first onClick={close}>
          {S.close}
        </button>
      </div>
    </div>
  );
}
