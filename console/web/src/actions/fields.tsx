// SPDX-License-Identifier: Apache-2.0

// The parts of dialogs: fields, lists of objects and buttons.

import type { ComponentChildren } from "preact";
import { visible } from "../base/text";
import { S } from "../base/strings";

interface NumberFieldProps {
  label: string;
  value: string;
  set: (value: string) => void;
  min?: number;
  max?: number;
  required?: boolean;
  /** first fields have the focus, and their value selected, when the dialog opens. */
  first?: boolean;
  /** list is the id of a datalist. */
  list?: string;
}

/** NumberField is a field for a whole number, as text: empty where none is required. */
export function NumberField({ label, value, set, min = 0, max, required, first, list }: NumberFieldProps) {
  return (
    <label class="field">
      {label}
      <input
        type="number"
        data-first={first || undefined}
        min={min}
        max={max}
        step={1}
        required={required}
        autocomplete="off"
        list={list}
        value={value}
        onInput={(e) => set(e.currentTarget.value)}
      />
    </label>
  );
}

/** Tick is a box to tick. */
export function Tick({ label, on, set, first }: { label: string; on: boolean; set: (on: boolean) => void; first?: boolean }) {
  return (
    <label class="inline">
      <input type="checkbox" data-first={first || undefined} checked={on} onChange={(e) => set(e.currentTarget.checked)} />
      {label}
    </label>
  );
}

/** MOST is how many objects a question lists. */
const MOST = 12;

/** Names lists objects, or texts about them. */
export function Names({ list }: { list: string[] }) {
  if (list.length === 0) return null;
  return (
    <ul class="targets">
      {list.slice(0, MOST).map((t) => (
        <li key={t}>{visible(t)}</li>
      ))}
      {list.length > MOST && <li>{S.more(list.length - MOST)}</li>}
    </ul>
  );
}

/** Buttons are the way back, and what a dialog is for. cautious dialogs have the focus on the way back. */
export function Buttons({ close, cautious, children }: { close: () => void; cautious?: boolean; children: ComponentChildren }) {
  return (
    <div class="buttons">
      <button type="button" onClick={close} data-first={cautious || undefined}>
        {S.cancel}
      </button>
      {children}
    </div>
  );
}
