// SPDX-License-Identifier: Apache-2.0

// Draining a node: its options, and what becomes of its pods.

import { useEffect, useRef, useState } from "preact/hooks";
import { type Message, Stream } from "../api/connection";
import { Command, show } from "../widgets/dialog";
import { api, reasonOf } from "../api/client";
import { kindByWord, listPath, objectPath } from "../api/kinds";
import { type Consent, type DrainedPod, drainedPods } from "../model/draining";
import { NumberField, Tick } from "./fields";
import { command } from "../model/kubectl";
import { D } from "../base/dialogstrings";
import { S } from "../base/strings";
import { visible } from "../base/text";
import type { Target } from "../model/target";

interface Options {
  ignoreDaemonSets: boolean;
  deleteEmptyDirData: boolean;
  force: boolean;
  gracePeriod: string;
  timeout: string;
}

/** BEGIN leaves pods of DaemonSets, which nearly every cluster has, and accepts no loss. */
const BEGIN: Options = { ignoreDaemonSets: true, deleteEmptyDirData: false, force: false, gracePeriod: "", timeout: "" };

interface Progress {
  state: string;
  message: string;
}

const TONE: Record<string, string> = { gone: "good", refused: "bad", evicted: "passing" };

interface Found {
  pods: DrainedPod[];
  /** unread is why they are not known. */
  unread: string;
}

/** podsOn are the pods of a node, as far as the user may see them. */
async function podsOn(node: string): Promise<Found> {
  const kind = kindByWord("pods");
  if (!kind) return { pods: [], unread: D.drain.failed };
  try {
    const all: Record<string, any>[] = [];
    let at = "";
    do {
      const query = new URLSearchParams({ fieldSelector: "spec.nodeName=" + node, limit: "500", ...(at && { continue: at }) });
      const page = await api<{ items: Record<string, any>[]; metadata: { continue?: string } }>("GET", listPath(kind, "") + "?" + query);
      all.push(...page.items);
      at = page.metadata.continue ?? "";
    } while (at);
    return { pods: drainedPods(all), unread: "" };
  } catch (err) {
    return { pods: [], unread: reasonOf(err) };
  }
}

/** drain lists what is on the node, and asks for the options, which are those of kubectl. */
export async function drain(t: Target): Promise<void> {
  const found = await podsOn(t.name);
  show({ title: D.drain.title(t.name), wide: true, content: (close) => <Drain target={t} found={found} close={close} /> });
}

function commandOf(name: string, o: Options): string {
  const options = [
    o.ignoreDaemonSets && "--ignore-daemonsets",
    o.deleteEmptyDirData && "--delete-emptydir-data",
    o.force && "--force",
    o.gracePeriod && "--grace-period=" + o.gracePeriod,
    o.timeout && "--timeout=" + o.timeout + "s",
  ].filter((x): x is string => !!x);
  return command({ verb: "drain", names: [name], options });
}

function Drain({ target: t, found, close }: { target: Target; found: Found; close: () => void }) {
  const [options, setOptions] = useState<Options>(BEGIN);
  const [running, setRunning] = useState(false);
  const [ended, setEnded] = useState<{ ok: boolean; text: string } | null>(null);
  const [pods, setPods] = useState<ReadonlyMap<string, Progress>>(new Map());
  const stream = useRef<Stream | null>(null);
  useEffect(() => () => stream.current?.close(), []);

  const start = () => {
    setPods(new Map());
    setEnded(null);
    setRunning(true);
    const { gracePeriod, timeout, ...ticked } = options;
    const query: Record<string, string> = { gracePeriod, timeout: timeout && timeout + "s" };
    for (const [k, v] of Object.entries(ticked)) query[k] = String(v);
    stream.current = new Stream(
      { op: "drain", path: objectPath(t.kind, "", t.name), query },
      {
        watch: false,
        // What was begun is not begun again by itself.
        resume: () => null,
        message(m: Message) {
          if (m.type === "drain") setPods((before) => new Map(before).set(m.pod, { state: m.state, message: m.message }));
          else if (m.type === "end") {
            setRunning(false);
            const text = m.reason === "ConnectionLost" ? D.drain.lost : m.code ? m.message || D.drain.failed : D.drain.done(t.name);
            setEnded({ ok: !m.code && m.reason !== "ConnectionLost", text });
          }
        },
      },
    );
  };
  const needing = (c: Consent) => found.pods.filter((p) => p.consent.includes(c)).length;
  const set = (change: Partial<Options>) => setOptions({ ...options, ...change });
  const begun = running || pods.size > 0;
  const all = [...pods].filter(([pod, p]) => pod && p.state !== "ignored");
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (!running) start();
      }}
    >
      <p>{running ? D.drain.running : D.drain.text}</p>
      {!begun && (
        <>
          {found.unread ? <p class="passing">{D.drain.unread(visible(found.unread))}</p> : <Pods pods={found.pods} options={options} />}
          {(needing("daemonSets") > 0 || found.unread) && (
            <Tick label={D.drain.daemonSets} on={options.ignoreDaemonSets} set={(ignoreDaemonSets) => set({ ignoreDaemonSets })} />
          )}
          {(needing("emptyDir") > 0 || found.unread) && (
            <Tick
              label={D.drain.emptyDir(needing("emptyDir"))}
              on={options.deleteEmptyDirData}
              set={(deleteEmptyDirData) => set({ deleteEmptyDirData })}
            />
          )}
          {(needing("force") > 0 || found.unread) && (
            <Tick label={D.drain.force(needing("force"))} on={options.force} set={(force) => set({ force })} />
          )}
          <NumberField label={D.drain.grace} value={options.gracePeriod} set={(gracePeriod) => set({ gracePeriod })} />
          <NumberField label={D.drain.timeout} value={options.timeout} set={(timeout) => set({ timeout })} min={1} />
        </>
      )}
      {ended && (
        <p class={ended.ok ? "good" : "bad"} role="alert">
          {visible(ended.text)}
        </p>
      )}
      {all.length > 0 && <p role="status">{D.drain.count(all.filter(([, p]) => p.state === "gone").length, all.length)}</p>}
      {pods.size > 0 && (
        <div class="data" tabIndex={0} role="region" aria-label={D.drain.title(t.name)}>
          <table class="plain">
            <thead>
              <tr>
                {D.drain.columns.map((c) => (
                  <th key={c} scope="col">
                    {c}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {[...pods].map(([pod, p]) => (
                <tr key={pod}>
                  <td>{visible(pod || t.name)}</td>
                  <td class={TONE[p.state] ?? ""}>{D.drain.state[p.state] ?? visible(p.state)}</td>
                  <td>{visible(p.message)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Command text={commandOf(t.name, options)} />
      <div class="buttons">
        <button type="button" data-first onClick={close}>
          {begun ? S.close : S.cancel}
        </button>
        {begun && !running && (
          <button type="button" onClick={() => setPods(new Map())}>
            {D.drain.again}
          </button>
        )}
        {!begun && (
          <button type="submit" class="danger">
            {D.drain.button}
          </button>
        )}
      </div>
    </form>
  );
}

/** Pods lists what a drain with these options does with each pod. */
function Pods({ pods, options }: { pods: DrainedPod[]; options: Options }) {
  if (pods.length === 0) return <p>{D.drain.none}</p>;
  const given: Record<Consent, boolean> = { daemonSets: false, emptyDir: options.deleteEmptyDirData, force: options.force };
  return (
    <div class="data" tabIndex={0} role="region" aria-label={D.drain.pods}>
      <table class="plain">
        <thead>
          <tr>
            {D.drain.podColumns.map((c) => (
              <th key={c} scope="col">
                {c}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {pods.map((p) => {
            const stays = p.consent.includes("daemonSets") && options.ignoreDaemonSets;
            return (
              <tr key={p.name}>
                <td>{visible(p.name)}</td>
                <td>{visible(p.controller)}</td>
                <td class={stays ? "" : p.consent.some((c) => !given[c]) ? "bad" : p.consent.length ? "passing" : ""}>
                  {stays ? D.drain.stays : [D.drain.goes, ...p.consent.map((c) => D.drain.needs[c])].join("; ")}
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}
