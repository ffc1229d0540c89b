// SPDX-License-Identifier: Apache-2.0

// The buttons of a list and of an object's page: the actions that fit the state, the others behind "…", and Delete
// apart from them.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Kind } from "../api/kinds";
import { useKeys } from "../base/keys";
import { S } from "../base/strings";
import type { Target } from "../model/target";
import { fitting, type State } from "../model/toolbar";
import { type Action, perform, whyOff } from "./actions";

/** More is what else a view offers for one object: its events, its map. */
export interface More {
  id: string;
  key: string;
  label: string;
  run(): void;
}

interface Item extends More {
  why: string;
  danger?: boolean;
}

export function Toolbar(p: { kind: Kind; actions: Action[]; targets: Target[]; state: State | null; more: More[] }) {
  const several = p.targets.length > 1;
  const only = p.targets.length === 0 ? S.nothingSelected : several ? S.oneAtATime : "";
  const items: Item[] = [
    ...p.actions.map((a) => ({ ...a, why: whyOff(a, p.targets), run: () => perform(a, p.targets) })),
    ...p.more.map((m) => ({ ...m, why: only, run: () => !only && m.run() })),
  ];
  const first = fitting(
    p.kind,
    p.state,
    several,
    items.map((i) => i.id),
  ).map((id) => items.find((i) => i.id === id)!);
  const rest = items.filter((i) => !first.includes(i) && !i.danger);
  return (
    <div class="tools">
      {first.map((i) => (
        <Button key={i.id} item={i} />
      ))}
      {rest.length > 0 && <Menu items={rest} />}
      {items
        .filter((i) => i.danger)
        .map((i) => (
          <Button key={i.id} item={i} />
        ))}
    </div>
  );
}

function Button({ item: i, role, picked }: { item: Item; role?: "menuitem"; picked?: () => void }) {
  const key = i.key.split(" ")[0];
  return (
    <button
      type="button"
      role={role}
      tabIndex={role && -1}
      class={i.danger ? "danger" : ""}
      aria-disabled={!!i.why}
      title={i.why || `${i.label} (${key})`}
      onClick={() => {
        picked?.();
        i.run();
      }}
    >
      {i.label}
      {role && <kbd aria-hidden="true">{key}</kbd>}
    </button>
  );
}

function Menu({ items }: { items: Item[] }) {
  const open = useSignal(false);
  const box = useRef<HTMLDivElement>(null);
  const opener = useRef<HTMLButtonElement>(null);
  const buttons = () => [...box.current!.querySelectorAll<HTMLElement>("[role=menuitem]")];
  const close = () => {
    if (!open.value) return;
    open.value = false;
    opener.current?.focus();
  };
  useKeys([{ key: ".", label: S.keys.more, run: () => (open.value = true) }]);
  useEffect(() => {
    if (open.value) buttons()[0]?.focus();
  }, [open.value]);
  return (
    <div
      ref={box}
      onKeyDown={(e) => {
        if (!open.value) return;
        const all = buttons();
        const at = all.indexOf(document.activeElement as HTMLElement);
        if (e.key === "Escape") close();
        else if (e.key === "Tab") return close();
        else if (e.key === "ArrowDown") all[(at + 1) % all.length]?.focus();
        else if (e.key === "ArrowUp") all[(at + all.length - 1) % all.length]?.focus();
        else if (e.key === "Home") all[0]?.focus();
        else if (e.key === "End") all.at(-1)?.focus();
        else return;
        e.preventDefault();
        e.stopPropagation();
      }}
      onFocusOut={(e) => {
        if (!box.current?.contains(e.relatedTarget as Node | null)) open.value = false;
      }}
    >
      <button
        ref={opener}
        type="button"
        aria-haspopup="menu"
        aria-expanded={open.value}
        aria-label={S.keys.more}
        title={`${S.keys.more} (.)`}
        onClick={() => (open.value ? close() : (open.value = true))}
      >
        …
      </button>
      <div class="menu" role="menu" aria-label={S.keys.more} hidden={!open.value}>
        {items.map((i) => (
          <Button key={i.id} item={i} role="menuitem" picked={close} />
        ))}
      </div>
    </div>
  );
}
