// SPDX-License-Identifier: Apache-2.0

// CodeMirror for YAML. It is in a shadow root, where it uses style sheets made by script, which the content security
// policy allows; in the page itself it would write <style> elements.

import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import { yaml } from "@codemirror/lang-yaml";
import {
  bracketMatching,
  foldGutter,
  foldKeymap,
  HighlightStyle,
  indentOnInput,
  indentUnit,
  syntaxHighlighting,
} from "@codemirror/language";
import { acceptChunk, rejectChunk, unifiedMergeView } from "@codemirror/merge";
import { highlightSelectionMatches, search, searchKeymap } from "@codemirror/search";
import { Compartment, EditorState } from "@codemirror/state";
import { drawSelection, EditorView, highlightActiveLine, highlightSpecialChars, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { S } from "../base/strings";

export interface Editor {
  text(): string;
  setText(text: string): void;
  /** compare shows how the text differs from another; with null it stops. */
  compare(original: string | null): void;
  focus(): void;
  destroy(): void;
}

export interface EditorOptions {
  parent: HTMLElement;
  text: string;
  label: string;
  onChange(): void;
  /** onSubmit is for Ctrl+Enter, onLeave for Escape. */
  onSubmit(): void;
  onLeave(): void;
}

const STYLE = EditorView.theme({
  "&": { height: "100%", color: "var(--text)", backgroundColor: "var(--back)", fontSize: "12px" },
  "&.cm-focused": { outline: "2px solid var(--accent)", outlineOffset: "-2px" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "18px" },
  ".cm-content": { caretColor: "var(--text)" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  ".cm-gutters": { backgroundColor: "var(--raised)", color: "var(--faint)", border: "none" },
  ".cm-activeLine": { backgroundColor: "color-mix(in srgb, var(--accent-back) 45%, transparent)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": {
    backgroundColor: "var(--accent-back)",
  },
  ".cm-panels": { backgroundColor: "var(--raised)", color: "var(--text)" },
  ".cm-searchMatch": { backgroundColor: "var(--mark-back)" },
  ".cm-button": { backgroundImage: "none", backgroundColor: "var(--raised)", color: "var(--text)" },
  ".cm-textfield": { backgroundColor: "var(--back)", color: "var(--text)" },
  ".cm-deletedChunk": { backgroundColor: "color-mix(in srgb, var(--bad) 16%, transparent)" },
  ".cm-changedLine": { backgroundColor: "color-mix(in srgb, var(--good) 16%, transparent)" },
  // The colours of CodeMirror's own buttons have too little contrast.
  ".cm-deletedChunk button[name=accept]": { backgroundColor: "var(--good)", color: "var(--back)" },
  ".cm-deletedChunk button[name=reject]": { backgroundColor: "var(--bad)", color: "var(--back)" },
  ".cm-specialChar": { color: "var(--bad)" },
});

const COLORS = HighlightStyle.define([
  { tag: [tags.propertyName, tags.definition(tags.propertyName)], color: "var(--accent)" },
  { tag: [tags.string, tags.content], color: "var(--text)" },
  { tag: [tags.number, tags.bool, tags.null], color: "var(--c3)" },
  { tag: tags.comment, color: "var(--faint)", fontStyle: "italic" },
  { tag: [tags.punctuation, tags.separator, tags.meta], color: "var(--faint)" },
]);

// Bidirectional and invisible characters that CodeMirror does not mark by itself.
const SPECIAL = /[\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** choice makes a button of a difference: the text stays as the user has it, or becomes as it is in the cluster. */
function choice(type: "accept" | "reject", action: (e: MouseEvent) => void): HTMLElement {
  const button = document.createElement("button");
  button.type = "button";
  button.name = type;
  button.textContent = type === "accept" ? S.edit.mine : S.edit.theirs;
  button.onmousedown = action;
  return button;
}

export function createEditor(o: EditorOptions): Editor {
  const root = o.parent.shadowRoot ?? o.parent.attachShadow({ mode: "open" });
  const compared = new Compartment();
  const view = new EditorView({
    root,
    parent: root,
    state: EditorState.create({
      doc: o.text,
      extensions: [
        keymap.of([
          { key: "Mod-Enter", run: () => (o.onSubmit(), true) },
          { key: "Alt-Enter", run: acceptChunk },
          { key: "Alt-Shift-Enter", run: rejectChunk },
          ...searchKeymap,
          { key: "Escape", run: () => (o.onLeave(), true) },
          indentWithTab,
          ...defaultKeymap,
          ...historyKeymap,
          ...foldKeymap,
        ]),
        lineNumbers(),
        foldGutter(),
        history(),
        drawSelection(),
        highlightSpecialChars({ addSpecialChars: SPECIAL }),
        highlightActiveLine(),
        highlightSelectionMatches(),
        bracketMatching(),
        indentOnInput(),
        indentUnit.of("  "),
        search({ top: true }),
        yaml(),
        syntaxHighlighting(COLORS),
        EditorView.lineWrapping,
        EditorView.contentAttributes.of({ "aria-label": o.label, spellcheck: "false" }),
        EditorView.updateListener.of((u) => {
          if (u.docChanged) o.onChange();
        }),
        compared.of([]),
        STYLE,
      ],
    }),
  });
  return {
    text: () => view.state.doc.toString(),
    setText: (text) => view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: text } }),
    compare: (original) =>
      view.dispatch({
        effects: compared.reconfigure(
          original === null ? [] : unifiedMergeView({ original, gutter: true, mergeControls: choice, highlightChanges: true }),
        ),
      }),
    focus: () => view.focus(),
    destroy: () => view.destroy(),
  };
}
