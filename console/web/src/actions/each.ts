// SPDX-License-Identifier: Apache-2.0

// An action on several objects.

import { announce } from "../base/announce";
import { S } from "../base/strings";
import { reasonOf } from "../api/client";
import type { Target } from "../model/target";

/**
 * each runs one request for each target, one after the other, and announces how it went. It returns those that were done.
 * why is the text of a failure.
 */
export async function each(
  targets: Target[],
  done: (n: number, name: string) => string,
  one: (t: Target) => Promise<unknown>,
  why: (err: unknown) => string = reasonOf,
): Promise<Target[]> {
  const ok: Target[] = [];
  for (const t of targets) {
    try {
      await one(t);
      ok.push(t);
    } catch (err) {
      announce(S.actionFailed(t.name, why(err)), true);
    }
  }
  if (ok.length > 0) announce(done(ok.length, ok[0].name));
  return ok;
}

/** nameOf is an object's name with its namespace. */
export const nameOf = (t: Target): string => (t.ns ? t.ns + "/" : "") + t.name;

/** titleOf is one object's kind and name. */
export const titleOf = (t: Target): string => (t.kind.singular || t.kind.kind.toLowerCase()) + " " + nameOf(t);
