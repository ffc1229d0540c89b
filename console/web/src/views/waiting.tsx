// SPDX-License-Identifier: Apache-2.0

// What the deletion of an object waits for.

import { openDialog } from "../actions/dialogs";
import type { Kind } from "../api/kinds";
import { refusal } from "../api/permissions";
import { announce } from "../base/announce";
import { D } from "../base/dialogstrings";
import { age, visible } from "../base/text";
import { finalizersOf, leftOf } from "../model/deletion";
import { now } from "../model/listing";

/** Waiting names what keeps an object that is being deleted: its finalizers, or what is left in a namespace. */
export function Waiting({ kind, object }: { kind: Kind; object: Record<string, any> }) {
  const waits = finalizersOf(object);
  const left = leftOf(object);
  if (waits.length === 0 && left.length === 0) return null;
  const { namespace: ns = "", name, uid, deletionTimestamp } = object.metadata;
  const why = refusal("patch", kind, ns, name);
  return (
    <div class="note passing" role="status">
      <p>
        {D.delete.already(age(deletionTimestamp, now.value))} {waits.length > 0 && D.finalizer.waits(waits.map(visible))}
      </p>
      {left.map((text) => (
        <p key={text}>{visible(text)}</p>
      ))}
      {waits.length > 0 && (
        <button
          type="button"
          aria-disabled={!!why}
          title={why || undefined}
          onClick={() => (why ? announce(why, true) : openDialog((d) => d.removeFinalizer({ kind, ns, name, uid }, object)))}
        >
          {D.finalizer.action}
        </button>
      )}
    </div>
  );
}
