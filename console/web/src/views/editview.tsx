// SPDX-License-Identifier: Apache-2.0

// Editing an object: the user's text goes to the server for a dry run, its difference is shown, and only then is it
// applied. When somebody else has changed the object in the meantime, both texts are shown and none is lost.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { announce } from "../base/announce";
import { ApiError, reasonOf, send } from "../api/client";
import { Command, confirm } from "../widgets/dialog";
import { Diff } from "../widgets/diff";
import { draft, dropDraft, keepDraft } from "../model/drafts";
import { createEditor, type Editor } from "../widgets/editor";
import { focusFirst, type Problem, Problems } from "../widgets/problems";
import { useKeys } from "../base/keys";
import { isKind, type Kind, kindById, kinds, label, objectPath, plainPath } from "../api/kinds";
import { commandFor } from "../model/kubectl";
import { refusal } from "../api/permissions";
import { back, format, route } from "../api/route";
import { session } from "../api/session";
import { E } from "../base/editstrings";
import { S } from "../base/strings";
import { Empty } from "../widgets/table";
import { visible, visibleLines } from "../base/text";
import { copy } from "../base/clipboard";
import { expectGone } from "../model/gone";

/** BEFORE is how many texts from before a conflict are kept. */
const BEFORE = 10;

export function EditView() {
  const r = route.value;
  const k = kindById(r.kind);
  if (!k) return kinds.value.length ? <Empty text={S.list.noKind(r.kind)} /> : <p class="empty">{S.loading}</p>;
  return <EditOf key={k.id + r.ns + "/" + r.name} kind={k} ns={r.ns} name={r.name} />;
}

interface Result {
  yaml: string;
  diff: string;
  patch: string;
  /** type is how the server takes the patch; "merge" when it is not given. */
  type?: "strategic" | "merge";
}

function EditOf({ kind, ns, name }: { kind: Kind; ns: string; name: string }) {
  const path = objectPath(kind, ns, name);
  const box = useRef<HTMLDivElement>(null);
  const editor = useRef<Editor | null>(null);
  const base = useRef("");
  const problem = useSignal("");
  /** mistakes are what the server refuses in the text, and its own words for it. */
  const mistakes = useSignal<{ list: Problem[]; said: string }>({ list: [], said: "" });
  const conflict = useSignal("");
  /** before is what the user had written before changes of others came into the text, the newest first. */
  const before = useSignal<string[]>([]);
  const result = useSignal<Result | null>(null);
  /** combined is true when the text after a conflict has the changes of others, too. */
  const combined = useSignal(false);
  const busy = useSignal(false);
  const loaded = useSignal(false);
  // The values of a secret are on the screen in an editor: it opens when that was asked for.
  const asked = useSignal(!isKind(kind, "", "secrets"));

  useEffect(() => {
    if (!asked.value) return;
    let closed = false;
    const open = (from: string, text: string) => {
      if (closed) return;
      base.current = from;
      loaded.value = true;
      editor.current = createEditor({
        parent: box.current!,
        text,
        label: E.edit.label(name),
        onChange: () => {
          result.value = null;
          keep(editor.current!.text());
        },
        onSubmit: () => void run(true),
        onLeave: leave,
      });
      editor.current.focus();
    };
    const kept = draft(path);
    if (kept) {
      announce(E.edit.restored);
      before.value = kept.before ?? [];
      open(kept.base, kept.text);
      if (kept.before?.length) editor.current?.compare(kept.base);
    } else {
      send<{ yaml: string }>("GET", "/object?edit=true&path=" + encodeURIComponent(plainPath(path))).then(
        (o) => open(o.yaml, o.yaml),
        (err: unknown) => (problem.value = reasonOf(err)),
      );
    }
    return () => {
      closed = true;
      editor.current?.destroy();
      editor.current = null;
    };
  }, [asked.value]);

  function keep(text: string): void {
    keepDraft(path, { base: base.current, text, before: before.value });
  }

  async function run(dryRun: boolean): Promise<void> {
    const e = editor.current;
    if (!e || busy.value) return;
    const text = e.text();
    const who = session.peek();
    if (text === base.current) {
      problem.value = E.edit.unchanged;
      return;
    }
    busy.value = true;
    problem.value = "";
    mistakes.value = { list: [], said: "" };
    e.mark([]);
    try {
      const r = await send<Result>("POST", "/edit", { path: plainPath(path), base: base.current, text, dryRun });
      if (!dryRun && session.peek() === who) dropDraft(path);
      if (editor.current !== e) return;
      if (dryRun) {
        result.value = r;
        conflict.value = "";
        requestAnimationFrame(() => document.querySelector<HTMLElement>("#edit-apply")?.focus());
      } else {
        announce(E.edit.done(name));
        // An object that is being deleted may be gone by this.
        if (/^ {2}deletionTimestamp: /m.test(base.current)) expectGone(plainPath(path));
        back();
      }
    } catch (err) {
      // The answer is for nobody when the view was left, and another user may be logged in now.
      if (editor.current !== e) return;
      result.value = null;
      if (err instanceof ApiError && err.code === 409 && typeof err.body.yaml === "string") {
        // The object as it is now is what later changes are compared with. With the user's text as it is, a comparison
        // would take back what others did: the text becomes the object as it is now with the user's own changes.
        base.current = err.body.yaml;
        const typed = e.text();
        const merged = typeof err.body.merged === "string" ? err.body.merged : typed;
        if (merged !== typed) before.value = [typed, ...before.value.filter((b) => b !== typed)].slice(0, BEFORE);
        combined.value = typeof err.body.merged === "string";
        conflict.value = err.message;
        e.compare(null);
        if (merged !== typed) e.setText(merged);
        keep(merged);
        e.compare(base.current);
        e.focus();
      } else if (err instanceof ApiError && Array.isArray(err.body.problems)) {
        const list = err.body.problems as Problem[];
        mistakes.value = { list, said: String(err.body.said ?? "") };
        e.mark(list.map((p) => p.line || 1));
        focusFirst();
      } else {
        problem.value = reasonOf(err);
      }
    }
    busy.value = false;
  }

  function leave(): void {
    const e = editor.current;
    if (!e || (e.text() === base.current && before.value.length === 0)) {
      dropDraft(path);
      back();
      return;
    }
    confirm({
      title: E.edit.leaveTitle,
      text: E.edit.leaveText,
      button: E.edit.leave,
      danger: true,
      command: () => "",
      run: () => {
        dropDraft(path);
        back();
      },
    });
  }

  /** putBack makes the text what it was. It can be undone in the editor. */
  function putBack(text: string): void {
    editor.current?.setText(text);
    editor.current?.focus();
    announce(E.edit.isBack);
  }

  useKeys([
    {
      key: "Escape",
      label: S.keys.back,
      run: () => (result.value ? ((result.value = null), editor.current?.focus()) : leave()),
      hint: true,
    },
  ]);
  const refused = refusal("patch", kind, ns, name);

  return (
    <section class="view" aria-label={E.edit.label(name)}>
      <div class="bar">
        <h1>
          <span class="faint">{E.edit.of}</span>{" "}
          <a href={format({ view: "object", kind: kind.id, ns, name })}>
            <span class="faint">
              {label(kind)} {visible(ns)}
              {ns && "/"}
            </span>
            <span class="name">{visible(name)}</span>
          </a>
        </h1>
        <div class="tools">
          <span class="faint keys-note">{E.edit.keysNote}</span>
          <button type="button" onClick={leave}>
            {S.cancel}
          </button>
          <button
            type="button"
            class="primary"
            disabled={busy.value || !loaded.value}
            title={E.edit.reviewKey}
            onClick={() => void run(true)}
          >
            {E.edit.review}
          </button>
        </div>
      </div>
      {refused && <p class="note passing">{refused}</p>}
      {problem.value && (
        <div class="problem" role="alert">
          <p>{visible(problem.value)}</p>
        </div>
      )}
      {mistakes.value.list.length > 0 && (
        <div class="problem" role="alert">
          <Problems {...mistakes.value} jump={(i) => editor.current?.jump(i)} />
        </div>
      )}
      {conflict.value && (
        <div class="problem" role="alert">
          <p>{visible(conflict.value)}</p>
          <p>{combined.value ? E.edit.combined : E.edit.conflict}</p>
        </div>
      )}
      {asked.value && before.value.length > 0 && !result.value && (
        <div class="note">
          {before.value.map((text, i) => (
            <details key={text}>
              <summary>{E.edit.before(before.value.length - i, before.value.length)}</summary>
              <div class="buttons start">
                <button type="button" onClick={() => putBack(text)}>
                  {E.edit.putBack}
                </button>
                <button type="button" onClick={() => void copy(text)}>
                  {S.copy}
                </button>
              </div>
              <pre class="data" tabIndex={0} aria-label={E.edit.beforeLabel}>
                {visibleLines(text)}
              </pre>
            </details>
          ))}
        </div>
      )}
      {!asked.value && (
        <div class="pane">
          <p>{S.secret.hidden}</p>
          <button type="button" onClick={() => (asked.value = true)}>
            {S.secret.showYaml}
          </button>
        </div>
      )}
      {asked.value && !loaded.value && !problem.value && <p class="empty">{S.loading}</p>}
      {result.value && (
        <div class="review">
          <h2>{result.value.diff ? E.edit.diff : E.edit.noDiff}</h2>
          {result.value.diff && <Diff text={result.value.diff} />}
          <Command text={commandFor("patch", [{ kind, ns, name }], "--type=" + (result.value.type ?? "merge"), "-p", result.value.patch)} />
          <div class="buttons start">
            <button type="button" id="edit-apply" class="primary" disabled={busy.value} onClick={() => void run(false)}>
              {E.edit.apply}
            </button>
            <button
              type="button"
              onClick={() => {
                result.value = null;
                editor.current?.focus();
              }}
            >
              {E.edit.more}
            </button>
          </div>
        </div>
      )}
      <div key="editor" class={"editor" + (result.value ? " behind" : "")} ref={box} />
    </section>
  );
}
