// SPDX-License-Identifier: Apache-2.0

// The revisions of a workload, and the way back to one of them.

import { useEffect, useRef, useState } from "preact/hooks";
import { announce } from "../base/announce";
import { reasonOf, send } from "../api/client";
import { Diff } from "../widgets/diff";
import { Command, show } from "../widgets/dialog";
import { objectPath } from "../api/kinds";
import { commandFor } from "../model/kubectl";
import { now } from "../model/listing";
import { S } from "../base/strings";
import { age, visible } from "../base/text";
import type { Target } from "../model/target";

interface Revision {
  number: number;
  created: string;
  images: string[] | null;
  cause?: string;
}

export async function undo(t: Target): Promise<void> {
  const path = encodeURIComponent(objectPath(t.kind, t.ns, t.name));
  const { revisions } = await send<{ revisions: Revision[] }>("GET", "/rollout?path=" + path);
  show({ title: S.rollout.title(t.name), wide: true, content: (close) => <Undo target={t} revisions={revisions} close={close} /> });
}

function Undo({ target: t, revisions, close }: { target: Target; revisions: Revision[]; close: () => void }) {
  const [chosen, setChosen] = useState(revisions[1]?.number ?? 0);
  const [diff, setDiff] = useState<string | null>(null);
  const [error, setError] = useState("");
  const newest = useRef(0);
  const path = objectPath(t.kind, t.ns, t.name);
  const request = (dryRun: boolean) => send<{ diff: string }>("POST", "/rollout/undo", { path, revision: chosen, dryRun });
  useEffect(() => {
    if (!chosen) return;
    const mine = ++newest.current;
    setDiff(null);
    setError("");
    request(true).then(
      (answer) => mine === newest.current && setDiff(answer.diff),
      (err: unknown) => mine === newest.current && setError(reasonOf(err)),
    );
  }, [chosen]);
  const run = async () => {
    close();
    try {
      await request(false);
      announce(S.rollout.done(t.name, chosen));
    } catch (err) {
      announce(S.actionFailed(t.name, reasonOf(err)), true);
    }
  };
  if (revisions.length < 2) {
    return (
      <div>
        <p>{S.rollout.none}</p>
        <div class="buttons">
          <button type="button" data-first onClick={close}>
            {S.close}
          </button>
        </div>
      </div>
    );
  }
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (diff) void run();
      }}
    >
      <table class="plain">
        <thead>
          <tr>
            {S.rollout.columns.map((c) => (
              <th key={c} scope="col">
                {c}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {revisions.map((r, i) => (
            <tr key={r.number}>
              <td>
                {i === 0 ? (
                  <span class="faint">{S.rollout.present}</span>
                ) : (
                  <input
                    type="radio"
                    name="revision"
                    id={"revision-" + r.number}
                    data-first={r.number === chosen ? true : undefined}
                    checked={r.number === chosen}
                    onChange={() => setChosen(r.number)}
                  />
                )}
              </td>
              <td>
                <label for={"revision-" + r.number}>{r.number}</label>
              </td>
              <td>{age(r.created, now.value)}</td>
              <td>
                {(r.images ?? []).map((image) => (
                  <div key={image}>{visible(image)}</div>
                ))}
              </td>
              <td>{visible(r.cause)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {error ? (
        <p class="bad" role="alert">
          {visible(error)}
        </p>
      ) : diff === null ? (
        <p class="faint" role="status">
          {S.rollout.looking}
        </p>
      ) : diff === "" ? (
        <p role="status">{S.rollout.same}</p>
      ) : (
        <Diff text={diff} />
      )}
      <Command text={commandFor("rollout undo", [t], "--to-revision=" + chosen)} />
      <div class="buttons">
        <button type="button" onClick={close}>
          {S.cancel}
        </button>
        <button type="submit" class="primary" disabled={!diff}>
          {S.rollout.button(chosen)}
        </button>
      </div>
    </form>
  );
}
