// SPDX-License-Identifier: Apache-2.0

// Creating objects from YAML: typed, pasted or dropped as files, many documents at once. A dry run comes first.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { announce } from "../base/announce";
import { reasonOf, send } from "../api/client";
import { Command } from "../widgets/dialog";
import { draft, dropDraft, keepDraft } from "../model/drafts";
import { createEditor, type Editor } from "../widgets/editor";
import { link } from "../model/facts";
import { useKeys } from "../base/keys";
import { command } from "../model/kubectl";
import { back, namespace } from "../api/route";
import { session } from "../api/session";
import { S } from "../base/strings";
import { visible } from "../base/text";

interface Result {
  apiVersion: string;
  kind: string;
  namespace: string;
  name: string;
  action: "created" | "configured" | "unchanged" | "";
  message: string;
}

const DRAFT = "create";

export function CreateView() {
  const box = useRef<HTMLDivElement>(null);
  const editor = useRef<Editor | null>(null);
  const results = useSignal<Result[] | null>(null);
  const applied = useSignal(false);
  const problem = useSignal("");
  const busy = useSignal(false);
  const over = useSignal(false);
  const ns = useSignal(namespace.peek() || session.peek()?.namespace || "default");

  useEffect(() => {
    const e = createEditor({
      parent: box.current!,
      text: draft(DRAFT)?.text ?? "",
      label: S.create.label,
      onChange: () => {
        if (!applied.value) results.value = null;
        keepDraft(DRAFT, { base: "", text: e.text() });
      },
      onSubmit: () => void run(true),
      onLeave: back,
    });
    editor.current = e;
    e.focus();
    return () => e.destroy();
  }, []);

  async function run(dryRun: boolean): Promise<void> {
    const text = editor.current?.text() ?? "";
    if (!text.trim() || busy.value) return;
    busy.value = true;
    problem.value = "";
    try {
      const answer = await send<{ results: Result[] }>("POST", "/apply", { yaml: text, namespace: ns.value, dryRun });
      results.value = answer.results;
      const failed = answer.results.filter((r) => r.message).length;
      applied.value = !dryRun;
      if (!dryRun && failed === 0) {
        dropDraft(DRAFT);
        announce(S.create.done(answer.results.length));
      }
      if (dryRun && failed === 0) requestAnimationFrame(() => document.querySelector<HTMLElement>("#create-apply")?.focus());
    } catch (err) {
      results.value = null;
      problem.value = reasonOf(err);
    }
    busy.value = false;
  }

  async function take(files: FileList | null | undefined): Promise<void> {
    const e = editor.current;
    if (!files || !e) return;
    const texts = [e.text().trim()];
    for (const f of [...files].sort((a, b) => (a.name < b.name ? -1 : 1))) texts.push((await f.text()).trim());
    e.setText(texts.filter(Boolean).join("\n---\n") + "\n");
    announce(S.create.added(files.length));
  }

  useKeys([{ key: "Escape", label: S.keys.back, run: back, hint: true }]);
  const good = results.value?.every((r) => !r.message) ?? false;

  return (
    <section
      class={"view" + (over.value ? " drop" : "")}
      aria-label={S.create.title}
      onDragOver={(e) => {
        e.preventDefault();
        over.value = true;
      }}
      onDragLeave={() => (over.value = false)}
      onDrop={(e) => {
        e.preventDefault();
        over.value = false;
        void take(e.dataTransfer?.files);
      }}
    >
      <div class="bar">
        <h1>{S.create.title}</h1>
        <span class="faint">{S.create.hint}</span>
        <div class="tools">
          <label class="inline">
            {S.create.namespace} <input size={14} value={ns.value} onInput={(e) => (ns.value = e.currentTarget.value)} />
          </label>
          <label class="file">
            {S.create.files}
            <input type="file" multiple accept=".yaml,.yml,.json" onChange={(e) => void take(e.currentTarget.files)} />
          </label>
          <button type="button" class="primary" disabled={busy.value} title={S.edit.reviewKey} onClick={() => void run(true)}>
            {S.create.check}
          </button>
        </div>
      </div>
      {problem.value && (
        <div class="problem" role="alert">
          <p>{visible(problem.value)}</p>
        </div>
      )}
      {results.value && (
        <div class="review" role="status">
          <h2>{applied.value ? S.create.applied : good ? S.create.checked : S.create.failed}</h2>
          <ul>
            {results.value.map((r, i) => {
              const href = applied.value && !r.message ? link(r.apiVersion, r.kind, r.namespace, r.name) : undefined;
              const text = `${r.kind} ${r.namespace ? r.namespace + "/" : ""}${r.name}`;
              return (
                <li key={i}>
                  {href ? <a href={href}>{visible(text)}</a> : visible(text)}{" "}
                  <span class={r.message ? "bad" : "good"}>
                    {r.message ? visible(r.message) : S.create.action[r.action || "unchanged"]}
                  </span>
                </li>
              );
            })}
          </ul>
          {!applied.value && good && (
            <>
              <Command text={command({ verb: "apply", options: ["-f", "file.yaml"], ns: ns.value })} />
              <div class="buttons start">
                <button type="button" id="create-apply" class="primary" disabled={busy.value} onClick={() => void run(false)}>
                  {S.create.apply}
                </button>
              </div>
            </>
          )}
        </div>
      )}
      <div key="editor" class="editor" ref={box} />
    </section>
  );
}
