// SPDX-License-Identifier: Apache-2.0

// Draining a node: its options, and what becomes of its pods.

import { useEffect, useRef, useState } from "preact/hooks";
import { type Message, Stream } from "../api/connection";
import { Command, show } from "../widgets/dialog";
import { objectPath } from "../api/kinds";
import { command } from "../model/kubectl";
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

const NONE: Options = { ignoreDaemonSets: false, deleteEmptyDirData: false, force: false, gracePeriod: "", timeout: "" };

interface Progress {
  state: string;
  message: string;
}

const TONE: Record<string, string> = { gone: "good", refused: "bad", evicted: "passing" };

/** drain asks for the options, which are those of kubectl: none of them is set. */
export async function drain(t: Target): Promise<void> {
  show({ title: S.drain.title(t.name), wide: true, content: (close) => <Drain target={t} close={close} /> });
}

function commandOf(name: string, o: Options): string {
  const options = [
    o.ignoreDaemonSets && "--ignore-daemonsets",
    o.deleteEmptyDirData && "--delete-emptydir-data",
    o.force && "--force",
    o.gracePeriod && "--grace-period=" + o.gracePeriod,
    o.timeout && "--timeout=" + o.timeout,
  ].filter((x): x is string => !!x);
  return command({ verb: "drain", names: [name], options });
}

function Drain({ target: t, close }: { target: Target; close: () => void }) {
  const [options, setOptions] = useState<Options>(NONE);
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
    const query: Record<string, string> = { gracePeriod, timeout };
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
            const text = m.reason === "ConnectionLost" ? S.drain.lost : m.code ? m.message || S.drain.failed : S.drain.done(t.name);
            setEnded({ ok: !m.code && m.reason !== "ConnectionLost", text });
          }
        },
      },
    );
  };
  const tick = (field: "ignoreDaemonSets" | "deleteEmptyDirData" | "force", label: string, first = false) => (
    <label class="inline">
      <input
        type="checkbox"
        data-first={first || undefined}
        checked={options[field]}
        onChange={(e) => setOptions({ ...options, [field]: e.currentTarget.checked })}
      />
      {label}
    </label>
  );
  const text = (field: "gracePeriod" | "timeout", label: string, pattern: string) => (
    <label class="field">
      {label}
      <input
        value={options[field]}
        pattern={pattern}
        autocomplete="off"
        onInput={(e) => setOptions({ ...options, [field]: e.currentTarget.value.trim() })}
      />
    </label>
  );
  const begun = running || pods.size > 0;
  const all = [...pods].filter(([pod, p]) => pod && p.state !== "ignored");
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (!running) start();
      }}
    >
      <p>{running ? S.drain.running : S.drain.text}</p>
      {!begun && tick("ignoreDaemonSets", S.drain.daemonSets, true)}
      {!begun && tick("deleteEmptyDirData", S.drain.emptyDir)}
      {!begun && tick("force", S.drain.force)}
      {!begun && text("gracePeriod", S.drain.grace, "[0-9]*")}
      {!begun && text("timeout", S.drain.timeout, "([0-9]+[hms])*")}
      {ended && (
        <p class={ended.ok ? "good" : "bad"} role="alert">
          {visible(ended.text)}
        </p>
      )}
      {all.length > 0 && <p role="status">{S.drain.count(all.filter(([, p]) => p.state === "gone").length, all.length)}</p>}
      {pods.size > 0 && (
        <div class="data" tabIndex={0} role="region" aria-label={S.drain.title(t.name)}>
          <table class="plain">
            <thead>
              <tr>
                {S.drain.columns.map((c) => (
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
                  <td class={TONE[p.state] ?? ""}>{S.drain.state[p.state] ?? visible(p.state)}</td>
                  <td>{visible(p.message)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Command text={commandOf(t.name, options)} />
      <div class="buttons">
        <button type="button" onClick={close}>
          {begun ? S.close : S.cancel}
        </button>
        {begun && !running && (
          <button type="button" onClick={() => setPods(new Map())}>
            {S.drain.again}
          </button>
        )}
        {!begun && (
          <button type="submit" class="danger">
            {S.drain.button}
          </button>
        )}
      </div>
    </form>
  );
}
