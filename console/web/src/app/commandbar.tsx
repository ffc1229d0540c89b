// SPDX-License-Identifier: Apache-2.0

// The line after ":" — a kind by any of its names, with a namespace after it, or a view.

import { signal } from "@preact/signals";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { announce } from "../base/announce";
import { chooseContext } from "../actions/contexts";
import { session } from "../api/session";
import { kindByWord, label, refreshKinds, suggest } from "../api/kinds";
import { go, namespace, setNamespace, type View } from "../api/route";
import { S } from "../base/strings";
import { openForwards } from "../actions/dialogs";

export const commandOpen = signal(false);

interface Choice {
  id: string;
  text: string;
  note: string;
  run(ns: string | null): void;
}

/** DIALOGS are opened by a word. */
const DIALOGS: [words: string, open: () => void][] = [["forwards", openForwards]];

const VIEWS: [words: string[], view: View][] = [
  [["overview", "home"], "overview"],
  [["problems"], "overview"],
  [["create", "apply"], "create"],
  [["helm", "releases"], "helm"],
];

function choices(text: string): Choice[] {
  const out: Choice[] = [];
  const word = text.trim().split(/\s+/)[0].toLowerCase();
  const rest = text.trim().slice(word.length).trim();
  if (word && "find".startsWith(word))
    out.push({
      id: "find",
      text: "find",
      note: S.views.search,
      run: () => go({ view: "search", params: { text: word === "find" ? rest : "" } }),
    });
  for (const [words, view] of VIEWS) {
    if (word && words.some((w) => w.startsWith(word)))
      out.push({ id: view, text: words[0], note: S.command.view, run: (ns) => (ns !== null && setNamespace(ns), go({ view })) });
  }
  if (word && (session.peek()?.contexts ?? 0) > 1 && ["ctx", "contexts"].some((w) => w.startsWith(word)))
    out.push({ id: "contexts", text: "ctx", note: S.contexts.title, run: () => void chooseContext(rest) });
  for (const [words, open] of DIALOGS) {
    if (word && words.startsWith(word)) out.push({ id: words, text: words, note: S.command.view, run: open });
  }
  for (const k of suggest(word)) {
    out.push({
      id: k.id,
      text: label(k),
      note: [k.shortNames.join(", "), k.kind, k.group].filter(Boolean).join(" · "),
      run(ns) {
        if (ns !== null) setNamespace(ns);
        go({ view: "list", kind: k.id, params: ns === null ? {} : { ns: ns || "*" } });
      },
    });
  }
  const exact = kindByWord(word);
  if (exact) out.sort((a, b) => Number(b.id === exact.id) - Number(a.id === exact.id));
  return out;
}

/** namespaceIn reads the second word; null when there is none. */
function namespaceIn(text: string): string | null {
  const word = text.trim().split(/\s+/)[1];
  if (!word) return null;
  return word === "*" || word === "all" || word === "-" ? "" : word;
}

export function CommandBar() {
  return commandOpen.value ? <Open /> : null;
}

function Open() {
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const field = useRef<HTMLInputElement>(null);
  const shown = useRef(true);
  const ran = useRef(false);
  // Before the next key: a layout effect, which runs in the task of the key that opened the line.
  useLayoutEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    field.current?.focus();
    refreshKinds();
    return () => {
      shown.current = false;
      // After Esc the focus is where it was; after Enter it is on the list, which may be the one that is open already.
      const list = ran.current ? document.querySelector<HTMLElement>(".table:not(.short)") : before;
      list?.focus?.({ preventScroll: true });
    };
  }, []);
  const found = choices(text);
  const close = () => (commandOpen.value = false);
  const run = (c: Choice | undefined) => {
    if (!c) {
      announce(S.command.unknown(text.trim()), true);
      return;
    }
    ran.current = true;
    close();
    c.run(namespaceIn(text));
  };
  return (
    <div class="command-bar" role="dialog" aria-label={S.command.label}>
      <label>
        <span aria-hidden="true">:</span>
        <input
          ref={field}
          role="combobox"
          aria-expanded={found.length > 0}
          aria-controls="command-choices"
          aria-activedescendant={found[at] ? "command-" + at : undefined}
          aria-label={S.command.label}
          placeholder={S.command.placeholder(namespace.value)}
          autocomplete="off"
          autocapitalize="off"
          spellcheck={false}
          value={text}
          onInput={(e) => {
            setText(e.currentTarget.value);
            setAt(0);
          }}
          onBlur={() => setTimeout(() => shown.current && close(), 150)}
          onKeyDown={(e) => {
            if (e.key === "ArrowDown") setAt(Math.min(at + 1, found.length - 1));
            else if (e.key === "ArrowUp") setAt(Math.max(at - 1, 0));
            else if (e.key === "Enter") run(found[at]);
            else if (e.key === "Escape") close();
            else if (e.key === "Tab" && found[at]) setText(found[at].text + " ");
            else return;
            e.preventDefault();
          }}
        />
      </label>
      <ul id="command-choices" role="listbox" class="choices" aria-label={S.command.label}>
        {found.map((c, i) => (
          <li
            key={c.id}
            id={"command-" + i}
            role="option"
            aria-selected={i === at}
            onMouseDown={(e) => e.preventDefault()}
            onClick={() => run(c)}
          >
            {c.text} <span class="faint">{c.note}</span>
          </li>
        ))}
      </ul>
    </div>
  );
}
