// SPDX-License-Identifier: Apache-2.0

// What becomes of a restart: it is announced when all pods are new, or when a minute has not been enough.

import { type Message, Stream } from "../api/connection";
import { objectPath } from "../api/kinds";
import { announce } from "../base/announce";
import { D } from "../base/dialogstrings";
import { rolloutOf } from "../model/rollout";
import type { Target } from "../model/target";

/** PATIENCE is how long a restart is followed, in milliseconds; MOST is how many are at once. */
const PATIENCE = 60_000;
const MOST = 5;

/** followRestarts announces how the restarts of workloads end. */
export function followRestarts(targets: Target[]): void {
  for (const t of targets.slice(0, MOST)) follow(t);
}

function follow(t: Target): void {
  const path = objectPath(t.kind, t.ns, t.name);
  let last = rolloutOf({});
  const stop = () => {
    clearTimeout(timer);
    stream.close();
  };
  const timer = setTimeout(() => {
    stop();
    if (last) announce(D.restart.slow(t.name, last.fresh, last.wanted), true);
  }, PATIENCE);
  const stream = new Stream(
    { op: "object", path },
    {
      watch: true,
      resume: () => ({ op: "object", path }),
      message(m: Message) {
        if (m.type === "object") {
          last = rolloutOf(m.object);
          if (last?.done) announce(D.restart.finished(t.name, last.wanted));
          if (!last || last.done) stop();
        } else if (m.type === "deleted" || m.type === "end") stop();
      },
    },
  );
}
