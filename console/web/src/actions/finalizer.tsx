// SPDX-License-Identifier: Apache-2.0

// The removal of a finalizer for which a deletion waits.

import { useState } from "preact/hooks";
import { announce } from "../base/announce";
import { ApiError, patch, reasonOf } from "../api/client";
import { objectPath, plainPath } from "../api/kinds";
import { D } from "../base/dialogstrings";
import { S } from "../base/strings";
import { visible } from "../base/text";
import { finalizersOf, removal, riskOf } from "../model/deletion";
import { expectGone } from "../model/gone";
import { commandFor } from "../model/kubectl";
import type { Target } from "../model/target";
import { Command, show } from "../widgets/dialog";
import { titleOf } from "./each";
import { Buttons } from "./fields";

/** removeFinalizer asks which of an object's finalizers is removed, and wants the object's name. */
export function removeFinalizer(t: Target, object: Record<string, any>): void {
  show({
    title: D.finalizer.title(titleOf(t)),
    content: (close) => <Finalizer target={t} object={object} close={close} />,
  });
}

function Finalizer({ target: t, object, close }: { target: Target; object: Record<string, any>; close: () => void }) {
  const all = finalizersOf(object);
  const [chosen, setChosen] = useState(all[0]);
  const [typed, setTyped] = useState("");
  const path = objectPath(t.kind, t.ns, t.name);
  const changes = removal(object, chosen);
  const run = async () => {
    close();
    if (all.length === 1) expectGone(plainPath(path), object.metadata.uid);
    try {
      await patch(path, changes, "application/json-patch+json");
      announce(D.finalizer.done(chosen, t.name));
    } catch (err) {
      const changed = err instanceof ApiError && (err.code === 422 || err.code === 404);
      announce(S.actionFailed(t.name, changed ? D.finalizer.changed : reasonOf(err)), true);
    }
  };
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (typed === t.name) void run();
      }}
    >
      {all.length === 1 ? (
        <p>
          <code>{visible(chosen)}</code>
        </p>
      ) : (
        all.map((f) => (
          <label key={f} class="inline">
            <input type="radio" name="finalizer" checked={f === chosen} onChange={() => setChosen(f)} />
            <code>{visible(f)}</code>
          </label>
        ))
      )}
      <p class="bad">{D.finalizer.risk[riskOf(chosen)]}</p>
      <label class="field">
        {D.delete.typeName(visible(t.name))}
        <input data-first autocomplete="off" spellcheck={false} value={typed} onInput={(e) => setTyped(e.currentTarget.value)} />
      </label>
      <Command text={commandFor("patch", [t], "--type=json", "-p", JSON.stringify(changes))} />
      <Buttons close={close}>
        <button type="submit" class="danger" disabled={typed !== t.name}>
          {D.finalizer.action}
        </button>
      </Buttons>
    </form>
  );
}
