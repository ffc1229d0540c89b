// SPDX-License-Identifier: Apache-2.0

// Keys. Each part of the page binds the keys it knows; the part bound last is asked first. Keys with Ctrl, Alt or Meta
// belong to the browser, and keys in a text field to the field.

import { signal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";

export interface Binding {
  /** key is as KeyboardEvent.key has it; several with a space between them. Space itself is "Space". */
  key: string;
  label: string;
  run(): void;
  /** hidden keys are not in the line of hints at the foot, only in the help. */
  hint?: boolean;
}

interface Layer {
  bindings: Binding[];
  /** modal layers hide those below. */
  modal: boolean;
}

export const layers = signal<Layer[]>([]);

function isField(target: EventTarget | undefined): boolean {
  if (!(target instanceof HTMLElement)) return false;
  return target.isContentEditable || target.tagName === "INPUT" || target.tagName === "TEXTAREA" || target.tagName === "SELECT";
}

document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.altKey || e.metaKey || e.defaultPrevented || e.isComposing) return;
  const target = e.composedPath()[0];
  if (isField(target)) return;
  const key = e.key === " " ? "Space" : e.key;
  // A focused button or link keeps the keys that press it.
  if ((key === "Enter" || key === "Space") && target instanceof HTMLElement && target.closest("button, a, summary, [role=tab]")) return;
  // A question that is open has the keys, also when the view behind it was changed since.
  const modal = layers.value.findLast((l) => l.modal);
  for (const layer of modal ? [modal] : [...layers.value].reverse()) {
    const found = layer.bindings.find((b) => b.key.split(" ").includes(key));
    if (found) {
      e.preventDefault();
      found.run();
      return;
    }
  }
});

/** useKeys binds keys while the component is shown. */
export function useKeys(bindings: Binding[], modal = false): void {
  const layer = useRef<Layer | null>(null);
  useLayoutEffect(() => {
    const mine: Layer = { bindings, modal };
    layer.current = mine;
    layers.value = [...layers.value, mine];
    return () => {
      layers.value = layers.value.filter((l) => l !== mine);
    };
  }, []);
  if (layer.current) layer.current.bindings = bindings;
}
