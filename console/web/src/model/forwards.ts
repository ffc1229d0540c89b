// SPDX-License-Identifier: Apache-2.0

// The ports of 127.0.0.1 that the console has opened, as far as this tab knows.

import { signal } from "@preact/signals";
import { announce } from "../base/announce";
import { send } from "../api/client";
import { session } from "../api/session";
import { S } from "../base/strings";

export interface Forward {
  id: number;
  resource: string;
  namespace: string;
  name: string;
  pod: string;
  port: number;
  local: number;
  open: number;
  opened: number;
  failed: number;
  error?: string;
  ended?: string;
}

export const forwards = signal<Forward[]>([]);

/** POLL is how often they are read while one is open: the pod may be gone. */
const POLL = 3_000;

let timer: ReturnType<typeof setTimeout> | undefined;

export function forwardName(f: Forward): string {
  return f.namespace + "/" + f.name;
}

/** addressOf is where a browser finds a forward. */
export function addressOf(f: Forward): string {
  return "http://127.0.0.1:" + Number(f.local) + "/";
}

/** readForwards reads them, says which have ended, and goes on while one is open. */
export async function readForwards(): Promise<void> {
  clearTimeout(timer);
  if (session.value?.mode !== "loopback") return;
  const before = forwards.value;
  try {
    forwards.value = (await send<{ forwards: Forward[] }>("GET", "/forwards")).forwards;
  } catch {
    // The line at the top says that the console does not answer.
  }
  for (const f of forwards.value) {
    if (f.ended && before.some((b) => b.id === f.id && !b.ended)) announce(S.forwards.ended(forwardName(f), f.ended), true);
  }
  clearTimeout(timer);
  if (forwards.value.some((f) => !f.ended) && session.value) timer = setTimeout(() => void readForwards(), POLL);
}

export function forgetForwards(): void {
  clearTimeout(timer);
  forwards.value = [];
}
