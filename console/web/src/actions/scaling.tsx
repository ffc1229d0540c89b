// SPDX-License-Identifier: Apache-2.0

// The number of replicas of workloads. A jump is asked about once more, and who else sets the number is named.

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { api, patch } from "../api/client";
import { type Kind, kindByWord, listPath, objectPath } from "../api/kinds";
import { D } from "../base/dialogstrings";
import { S } from "../base/strings";
import { visible } from "../base/text";
import { commandFor } from "../model/kubectl";
import { autoscalersOf, type Holder, holdersOf, isJump } from "../model/scaling";
import type { Target } from "../model/target";
import { Command, show } from "../widgets/dialog";
import { each, nameOf, titleOf } from "./each";
import { Buttons, Names, NumberField } from "./fields";

interface Scaled {
  target: Target;
  now: number;
  holders: Holder[];
}

interface List {
  items: Record<string, any>[];
}

/** scale asks for a number. */
export async function scale(targets: Target[]): Promise<void> {
  const autoscalers = new Map<string, Record<string, any>[]>();
  const hpas = kindByWord("horizontalpodautoscalers.autoscaling");
  await Promise.all([...new Set(targets.map((t) => t.ns))].map(async (ns) => autoscalers.set(ns, await listed(hpas, ns))));
  const scaled = await Promise.all(
    targets.map(async (t) => {
      const path = objectPath(t.kind, t.ns, t.name);
      const [of, object] = await Promise.all([
        api<{ spec?: { replicas?: number } }>("GET", path + "/scale"),
        api<Record<string, any>>("GET", path).catch(() => ({})), // who may scale an object need not see it
      ]);
      return {
        target: t,
        now: of.spec?.replicas ?? 0,
        holders: [...autoscalersOf(t.kind, t.name, autoscalers.get(t.ns) ?? []), ...holdersOf(object)],
      };
    }),
  );
  const title = targets.length === 1 ? D.scale.title(titleOf(targets[0])) : D.scale.titleOf(targets.length);
  show({ title, content: (close) => <Scale scaled={scaled} close={close} /> });
}

/** listed are the objects of a kind; none where the user may not list them. */
async function listed(k: Kind | undefined, ns: string): Promise<Record<string, any>[]> {
  if (!k) return [];
  return api<List>("GET", listPath(k, ns) + "?limit=500").then(
    (l) => l.items,
    () => [],
  );
}

function Scale({ scaled, close }: { scaled: Scaled[]; close: () => void }) {
  const targets = scaled.map((s) => s.target);
  const [wanted, setWanted] = useState(String(scaled[0].now));
  const [asked, setAsked] = useState(false);
  const cancel = useRef<HTMLDivElement>(null);
  // The answer to the second question is not the key that has just been pressed.
  useLayoutEffect(() => void (asked && cancel.current?.querySelector("button")?.focus()), [asked]);
  const jumps = scaled.filter((s) => isJump(s.now, Number(wanted)));
  const run = () => {
    close();
    void each(targets, S.scale.done(wanted), (t) =>
      patch(objectPath(t.kind, t.ns, t.name) + "/scale", { spec: { replicas: Number(wanted) } }),
    );
  };
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (jumps.length > 0 && !asked) setAsked(true);
        else run();
      }}
    >
      {scaled.length === 1 ? (
        <p>{D.scale.now(scaled[0].now)}</p>
      ) : (
        <Names list={scaled.map((s) => `${nameOf(s.target)}: ${D.scale.count(s.now)}`)} />
      )}
      {scaled.flatMap((s) =>
        s.holders.map((h) => (
          <p key={nameOf(s.target) + h.by + h.name} class="passing">
            {scaled.length > 1 && visible(nameOf(s.target)) + ": "}
            {textOf(h)}
          </p>
        )),
      )}
      {asked ? (
        <div role="alert">
          <p class="bad">{D.scale.jump}</p>
          <Names list={jumps.map((s) => D.scale.jumpOf(nameOf(s.target), s.now, Number(wanted)))} />
        </div>
      ) : (
        <NumberField label={S.scale.field} value={wanted} set={setWanted} required first />
      )}
      <Command text={wanted && commandFor("scale", targets, "--replicas=" + wanted)} />
      <div ref={cancel}>
        <Buttons close={close}>
          <button type="submit" class={asked ? "danger" : "primary"}>
            {asked ? D.scale.anyway(Number(wanted)) : S.action.scale}
          </button>
        </Buttons>
      </div>
    </form>
  );
}

function textOf(h: Holder): string {
  const name = visible(h.name);
  switch (h.by) {
    case "hpa":
      return D.scale.hpa(name, h.min, h.max);
    case "controller":
      return D.scale.controller(visible(h.kind), name);
    default:
      return D.scale[h.by](name);
  }
}
