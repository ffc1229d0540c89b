// SPDX-License-Identifier: Apache-2.0

// Dialogs: one at a time, in the browser's own <dialog>, which keeps the focus inside and gives it back.

import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { S } from "../base/strings";
import { visible } from "../base/text";
import { useKeys } from "../base/keys";
import { copy } from "../base/clipboard";

interface Shown {
  title: string;
  content: (close: () => void) => ComponentChildren;
  wide?: boolean;
  onClose?: () => void;
}

export const shown = signal<Shown | null>(null);

export function show(dialog: Shown): void {
  shown.value = dialog;
}

export function closeDialog(): void {
  const d = shown.value;
  shown.value = null;
  d?.onClose?.();
}

export function DialogHost() {
  const d = shown.value;
  return d ? <Dialog key={d.title} shown={d} /> : null;
}

function Dialog({ shown: d }: { shown: Shown }) {
  const ref = useRef<HTMLDialogElement>(null);
  useKeys([], true);
  useLayoutEffect(() => {
    const before = document.activeElement;
    ref.current?.showModal();
    const first = ref.current?.querySelector<HTMLElement>("[data-first]");
    first?.focus();
    // What is typed replaces a value that is there.
    if (first instanceof HTMLInputElement) first.select();
    return () => (before as HTMLElement | null)?.focus?.();
  }, []);
  return (
    <dialog
      ref={ref}
      class={d.wide ? "wide" : ""}
      aria-labelledby="dialog-title"
      onCancel={(e) => {
        e.preventDefault();
        closeDialog();
      }}
      onClick={(e) => {
        if (e.target === ref.current) closeDialog();
      }}
      onKeyDown={(e) => {
        if (e.key !== "y" || e.ctrlKey || e.altKey || e.metaKey || takesText(e.target)) return;
        e.preventDefault();
        ref.current?.querySelector<HTMLElement>(".command button")?.click();
      }}
    >
      <div class="dialog-body">
        <h2 id="dialog-title">{visible(d.title)}</h2>
        {d.content(closeDialog)}
      </div>
    </dialog>
  );
}

/** takesText is whether a letter that is typed there is text. */
function takesText(at: EventTarget | null): boolean {
  return at instanceof HTMLInputElement ? !/^(number|checkbox|radio)$/.test(at.type) : at instanceof HTMLTextAreaElement;
}

/** Command shows the kubectl command that does the same as a button; one on each line of text. In a dialog y copies it. */
export function Command({ text }: { text: string }) {
  if (!text) return null;
  return (
    <div class="command">
      <span class="faint">
        {S.dialog.sameAs}{" "}
        <button type="button" title={S.copyKey} onClick={() => void copy(text)}>
          {S.copy}
        </button>
      </span>
      {text.split("\n").map((line) => (
        <code key={line}>{visible(line)}</code>
      ))}
    </div>
  );
}

interface Confirmation {
  title: string;
  text: string;
  targets?: string[];
  button: string;
  danger?: boolean;
  /** command gives the kubectl command; empty when there is none. */
  command: () => string;
  run: () => unknown;
}

export function confirm(c: Confirmation): void {
  show({ title: c.title, content: (close) => <Confirm c={c} close={close} /> });
}

function Confirm({ c, close }: { c: Confirmation; close: () => void }) {
  const targets = c.targets ?? [];
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        close();
        void c.run();
      }}
    >
      <p>{c.text}</p>
      {targets.length > 0 && (
        <ul class="targets">
          {targets.slice(0, 12).map((t) => (
            <li key={t}>{visible(t)}</li>
          ))}
          {targets.length > 12 && <li>{S.more(targets.length - 12)}</li>}
        </ul>
      )}
      <Command text={c.command()} />
      <div class="buttons">
        <button type="button" onClick={close}>
          {S.cancel}
        </button>
        <button type="submit" class={c.danger ? "danger" : "primary"} data-first>
          {c.button}
        </button>
      </div>
    </form>
  );
}

/** choose shows a list to pick from; text that is typed narrows it, and is an answer itself when free is set. */
export function choose(c: {
  title: string;
  items: string[];
  free?: boolean;
  current?: string;
  hint?: string;
  pick: (item: string) => void;
}): void {
  show({ title: c.title, content: (close) => <Choose {...c} close={close} /> });
}

function Choose(c: {
  title: string;
  items: string[];
  free?: boolean;
  current?: string;
  hint?: string;
  pick: (item: string) => void;
  close: () => void;
}) {
  const [text, setText] = useState("");
  const [at, setAt] = useState(Math.max(0, c.items.indexOf(c.current ?? "")));
  const list = useRef<HTMLUListElement>(null);
  const found = c.items.filter((i) => i.toLowerCase().includes(text.toLowerCase()));
  const pick = (item: string | undefined) => {
    const answer = item ?? (c.free ? text.trim() : "");
    if (!answer) return;
    c.close();
    c.pick(answer);
  };
  useLayoutEffect(() => list.current?.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" }), [at, text]);
  return (
    <div>
      {c.hint && <p class="faint">{c.hint}</p>}
      <input
        data-first
        class="full"
        role="combobox"
        aria-expanded="true"
        aria-controls="choices"
        aria-label={c.title}
        aria-activedescendant={found[at] ? "choice-" + at : undefined}
        autocomplete="off"
        spellcheck={false}
        value={text}
        onInput={(e) => {
          setText(e.currentTarget.value);
          setAt(0);
        }}
        onKeyDown={(e) => {
          if (e.key === "ArrowDown") setAt(Math.min(at + 1, found.length - 1));
          else if (e.key === "ArrowUp") setAt(Math.max(at - 1, 0));
          else if (e.key === "Enter") pick(found[at]);
          else return;
          e.preventDefault();
        }}
      />
      <ul id="choices" role="listbox" class="choices" ref={list} aria-label={c.title}>
        {found.slice(0, 500).map((item, i) => (
          <li key={item} id={"choice-" + i} role="option" aria-selected={i === at} onClick={() => pick(item)}>
            {visible(item)}
          </li>
        ))}
      </ul>
    </div>
  );
}
