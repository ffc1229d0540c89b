// SPDX-License-Identifier: Apache-2.0

// Deletions: what they take with them, and what they are asked with. What takes much with it wants its name typed. Only
// the object that was shown is deleted, and no new one of its name.

import { useEffect, useState } from "preact/hooks";
import { api, ApiError, reasonOf } from "../api/client";
import { isKind, kinds, objectPath, plainPath } from "../api/kinds";
import { D } from "../base/dialogstrings";
import { S } from "../base/strings";
import { age, visible } from "../base/text";
import { type Choices, commandOptions, type Count, deleteOptions, finalizersOf, isGrave, lossOf, owns } from "../model/deletion";
import { expectGone } from "../model/gone";
import { commandFor } from "../model/kubectl";
import { now } from "../model/listing";
import type { Target } from "../model/target";
import { Command, show } from "../widgets/dialog";
import { countInside, countOf } from "./counting";
import { each, nameOf, titleOf } from "./each";
import { Buttons, Names, NumberField, Tick } from "./fields";
import { removeFinalizer } from "./finalizer";

const ONE_AS_METADATA = { Accept: "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json" };

interface Metadata {
  metadata: Record<string, any>;
}

/** readMetadata reads an object's metadata; null where the user may delete it and not see it. */
async function readMetadata(t: Target): Promise<Metadata | null> {
  try {
    return await api<Metadata>("GET", objectPath(t.kind, t.ns, t.name), undefined, ONE_AS_METADATA);
  } catch (err) {
    if (err instanceof ApiError && err.code === 403) return null;
    throw err;
  }
}

/** deleteObjects asks, and deletes objects of one kind. */
export async function deleteObjects(targets: Target[]): Promise<void> {
  const [t] = targets;
  const one = targets.length === 1 ? await readMetadata(t) : null;
  if (one && t.uid && one.metadata.uid !== t.uid) throw new Error(S.actionFailed(t.name, D.delete.replaced));
  const title = targets.length === 1 ? D.delete.title(titleOf(t)) : D.delete.titleOf(targets.length, t.kind.resource);
  show({ title, content: (close) => <Delete targets={targets} one={one} close={close} /> });
}

const PLAIN: Choices = { grace: "", force: false, cascade: "background" };

function Delete({ targets, one, close }: { targets: Target[]; one: Metadata | null; close: () => void }) {
  const [choices, setChoices] = useState(PLAIN);
  const [typed, setTyped] = useState("");
  const { kind, name } = targets[0];
  const grave = isGrave(kind);
  const wanted = targets.length === 1 ? name : String(targets.length);
  const pods = isKind(kind, "", "pods");
  const waits = finalizersOf(one);
  const uidOf = (t: Target) => t.uid ?? (targets.length === 1 ? one?.metadata.uid : undefined) ?? "";
  const run = async () => {
    close();
    const ok = await each(
      targets,
      D.delete.done,
      (t) => api("DELETE", objectPath(t.kind, t.ns, t.name), deleteOptions(choices, uidOf(t))),
      (err) => (err instanceof ApiError && err.code === 409 && /UID/.test(err.message) ? D.delete.replaced : reasonOf(err)),
    );
    for (const t of ok) expectGone(plainPath(objectPath(t.kind, t.ns, t.name)), uidOf(t));
  };
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (!grave || typed === wanted) void run();
      }}
    >
      <p>
        {D.delete.loss[lossOf(kind, one)]} {D.delete.forever}
      </p>
      {targets.length > 1 && <Names list={targets.map(nameOf)} />}
      {targets.length === 1 && <Inside target={targets[0]} />}
      {one?.metadata.deletionTimestamp && (
        <p class="passing">
          {D.delete.already(age(one.metadata.deletionTimestamp, now.value))} {waits.length > 0 && D.finalizer.waits(waits.map(visible))}
        </p>
      )}
      {waits.length > 0 && (
        <div class="buttons start">
          <button type="button" onClick={() => (close(), removeFinalizer(targets[0], one!))}>
            {D.finalizer.action}
          </button>
        </div>
      )}
      {grave && (
        <label class="field">
          {targets.length === 1 ? D.delete.typeName(visible(name)) : D.delete.typeNumber(targets.length)}
          <input data-first autocomplete="off" spellcheck={false} value={typed} onInput={(e) => setTyped(e.currentTarget.value)} />
        </label>
      )}
      {(pods || owns(kind)) && (
        <details>
          <summary>{D.delete.choices}</summary>
          {pods && (
            <>
              <NumberField
                label={D.delete.grace}
                value={choices.force ? "0" : choices.grace}
                set={(grace) => setChoices({ ...choices, grace, force: false })}
                min={choices.force ? 0 : 1}
              />
              <Tick label={D.delete.force} on={choices.force} set={(force) => setChoices({ ...choices, force, grace: "" })} />
            </>
          )}
          {owns(kind) && (
            <label class="field">
              {D.delete.cascade}
              <select
                value={choices.cascade}
                onChange={(e) => setChoices({ ...choices, cascade: e.currentTarget.value as Choices["cascade"] })}
              >
                {(["background", "foreground", "orphan"] as const).map((c) => (
                  <option key={c} value={c}>
                    {D.delete.cascades[c]}
                  </option>
                ))}
              </select>
            </label>
          )}
        </details>
      )}
      {choices.force && <p class="bad">{D.delete.forceRisk}</p>}
      <Command text={commandFor("delete", targets, ...commandOptions(choices))} />
      <Buttons close={close} cautious={!grave}>
        <button type="submit" class="danger" disabled={grave && typed !== wanted}>
          {S.action.delete}
        </button>
      </Buttons>
    </form>
  );
}

/** Inside says how many objects go with a namespace, or with the definition of a kind. */
function Inside({ target: t }: { target: Target }) {
  const [count, setCount] = useState<Count | null>(null);
  const loss = lossOf(t.kind);
  const defined = loss === "crd" ? kinds.value.find((k) => k.group && k.resource + "." + k.group === t.name) : undefined;
  const counts = loss === "namespace" || defined !== undefined;
  useEffect(() => {
    if (!counts) return;
    let over = false;
    void (defined ? countOf(defined) : countInside(t.name, () => over)).then((c) => over || setCount(c));
    return () => {
      over = true;
    };
  }, []);
  if (!counts) return null;
  return (
    <p role="status">
      {!count ? (
        D.delete.counting
      ) : (
        <>
          <strong>{D.delete.count(count.objects, count.kinds.length, count.partial)}</strong>
          {!defined && count.kinds.length > 0 && " " + D.delete.most(count.kinds.slice(0, 5).map(([k, n]) => `${visible(k)} ${n}`))}
        </>
      )}
    </p>
  );
}
