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
import { Compartment, EditorState, StateEffect, StateField } from "@codemirror/state";
import { Decoration, drawSelection, EditorView, highlightActiveLine, highlightSpecialChars, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { E } from "../base/editstrings";

export interface Editor {
  text(): string;
  setText(text: string): void;
  /** compare shows how the text differs from another; with null it stops. */
  compare(original: string | null): void;
  /** mark marks lines, counted from 1. They stay with their text when others change. */
  mark(lines: number[]): void;
  /** jump puts the cursor on a marked line, by its place in the argument of mark. */
  jump(i: number): void;
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
  ".cm-mistake, .cm-mistake.cm-activeLine": {
    backgroundColor: "color-mix(in srgb, var(--bad) 14%, transparent)",
    boxShadow: "inset 3px 0 0 var(--bad)",
  },
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
  button.textContent = type === "accept" ? E.edit.mine : E.edit.theirs;
  button.onmousedown = action;
  return button;
}

const setMarks = StateEffect.define<number[]>();

/** marks are the places of marked lines, in characters. */
const marks = StateField.define<number[]>({
  create: () => [],
  update: (now, tr) => {
    for (const e of tr.effects) if (e.is(setMarks)) return e.value;
    return tr.docChanged ? now.map((at) => tr.changes.mapPos(at)) : now;
  },
  provide: (f) =>
    EditorView.decorations.compute([f, "doc"], (state) => {
      const starts = new Set(state.field(f).map((at) => state.doc.lineAt(at).from));
      return Decoration.set([...starts].sort((a, b) => a - b).map((at) => Decoration.line({ class: "cm-mistake" }).range(at)));
    }),
});

function jumpTo(view: EditorView, at: number | undefined): boolean {
  if (at === undefined) return false;
  const line = view.state.doc.lineAt(at);
  const indent = line.text.length - line.text.trimStart().length;
  view.dispatch({
    selection: { anchor: line.from + indent },
    effects: EditorView.scrollIntoView(line.from, { y: "center" }),
  });
  view.focus();
  return true;
}

/** nextMark goes to the next marked line, and after the last one to the first. */
function nextMark(view: EditorView): boolean {
  const sorted = [...view.state.field(marks)].sort((a, b) => a - b);
  const here = view.state.doc.lineAt(view.state.selection.main.head).to;
  return jumpTo(view, sorted.find((at) => at > here) ?? sorted[0]);
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
          { key: "F8", run: nextMark },
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
        marks,
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
    mark: (lines) => {
      const doc = view.state.doc;
      view.dispatch({ effects: setMarks.of(lines.map((n) => doc.line(Math.min(Math.max(n, 1), doc.lines)).from)) });
    },
    jump: (i) => void jumpTo(view, view.state.field(marks)[i]),
    focus: () => view.focus(),
    destroy: () => view.destroy(),
  };
}
