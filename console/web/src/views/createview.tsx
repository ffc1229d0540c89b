// SPDX-License-Identifier: Apache-2.0

// Creating objects from YAML: typed, pasted or dropped as files, many documents at once. A dry run comes first.

import { batch, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { announce } from "../base/announce";
import { reasonOf, send } from "../api/client";
import { Command } from "../widgets/dialog";
import { draft, dropDraft, keepDraft } from "../model/drafts";
import { createEditor, type Editor } from "../widgets/editor";
import { focusFirst, type Problem, Problems } from "../widgets/problems";
import { link } from "../model/facts";
import { useKeys } from "../base/keys";
import { command } from "../model/kubectl";
import { back, namespace } from "../api/route";
import { session } from "../api/session";
import { E } from "../base/editstrings";
import { S } from "../base/strings";
import { visible } from "../base/text";

interface Result {
  document: number;
  line: number;
  apiVersion: string;
  kind: string;
  namespace?: string;
  name: string;
  action?: "created" | "configured" | "unchanged";
  /** needs names the object of the text without which this one could not be checked. */
  needs?: string;
  problems?: Problem[];
  said?: string;
}

const DRAFT = "create";

export function CreateView() {
  const box = useRef<HTMLDivElement>(null);
  const editor = useRef<Editor | null>(null);
  const results = useSignal<Result[] | null>(null);
  const applied = useSignal(false);
  /** changed is true when the results are of another text than the one in the editor. */
  const changed = useSignal(false);
  const problem = useSignal("");
  const busy = useSignal(false);
  const over = useSignal(false);
  const ns = useSignal(namespace.peek() || session.peek()?.namespace || "default");

  useEffect(() => {
    const e = createEditor({
      parent: box.current!,
      text: draft(DRAFT)?.text ?? "",
      label: E.create.label,
      onChange: () => {
        if (!applied.value && results.value?.every((r) => !r.problems)) results.value = null;
        changed.value = true;
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
      const failed = answer.results.filter((r) => r.problems).length;
      batch(() => {
        results.value = answer.results;
        applied.value = !dryRun;
        changed.value = editor.current?.text() !== text;
      });
      editor.current?.mark(answer.results.flatMap((r) => r.problems ?? []).map((p) => p.line || 1));
      if (failed > 0) focusFirst();
      if (!dryRun && failed === 0) {
        dropDraft(DRAFT);
        announce(E.create.done(answer.results.length));
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
    announce(E.create.added(files.length));
  }

  useKeys([{ key: "Escape", label: S.keys.back, run: back, hint: true }]);
  const all = results.value ?? [];
  const failed = all.filter((r) => r.problems).length;
  const good = failed === 0;
  // The marks of the editor are the mistakes of all objects, one after the other.
  const firstMark = all.map((_, i) => all.slice(0, i).reduce((n, r) => n + (r.problems?.length ?? 0), 0));
  const title = applied.value
    ? good
      ? E.create.applied
      : E.create.partly(failed, all.length)
    : !good
      ? E.create.failed(failed, all.length)
      : all.some((r) => r.needs)
        ? E.create.checkedPart
        : E.create.checked;

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
        <span class="faint">{E.create.hint}</span>
        <div class="tools">
          <label class="inline">
            {E.create.namespace} <input size={14} value={ns.value} onInput={(e) => (ns.value = e.currentTarget.value)} />
          </label>
          <label class="file">
            {E.create.files}
            <input type="file" multiple accept=".yaml,.yml,.json" onChange={(e) => void take(e.currentTarget.files)} />
          </label>
          <button type="button" class="primary" disabled={busy.value} title={E.edit.reviewKey} onClick={() => void run(true)}>
            {E.create.check}
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
          <h2>{title}</h2>
          {!good && (
            <p class="faint">
              {applied.value && E.create.again} {E.problems.next} {changed.value && E.create.changed}
            </p>
          )}
          <ul>
            {all.map((r, i) => {
              const href = applied.value && !r.problems ? link(r.apiVersion, r.kind, r.namespace ?? "", r.name) : undefined;
              const text = `${r.kind} ${r.namespace ? r.namespace + "/" : ""}${r.name}`;
              return (
                <li key={i}>
                  <span class="faint">{E.create.document(r.document)}</span> {href ? <a href={href}>{visible(text)}</a> : visible(text)}{" "}
                  {r.action && <span class="good">{(applied.value ? E.create.action : E.create.would)[r.action]}</span>}
                  {r.needs && (
                    <span class="passing">
                      {r.needs}
                      {!r.problems && "; " + E.create.later}
                    </span>
                  )}
                  {r.problems && <Problems list={r.problems} said={r.said ?? ""} jump={(n) => editor.current?.jump(firstMark[i] + n)} />}
                </li>
              );
            })}
          </ul>
          {!applied.value && good && !changed.value && (
            <>
              <Command text={command({ verb: "apply", options: ["-f", "file.yaml"], ns: ns.value })} />
              <div class="buttons start">
                <button type="button" id="create-apply" class="primary" disabled={busy.value} onClick={() => void run(false)}>
                  {E.create.apply}
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
