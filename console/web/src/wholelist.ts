// SPDX-License-Identifier: Apache-2.0

// Whole objects of a kind that stay true: they are read again when the listing of their rows says that one has changed.
// For kinds with few objects, of which the server's tables do not print what is needed.

import { signal, type Signal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { api } from "./client";
import { type Kind, listPath } from "./kinds";
import { Listing } from "./listing";

/** PAUSE is the shortest time between two readings, in milliseconds. MOST bounds how many objects are read. */
const PAUSE = 1_000;
const MOST = 500;

type Obj = Record<string, any>;

/** useWholeList follows the objects of a kind; none while they are not known, for no kind, and for users who may not. */
export function useWholeList(kind: Kind | undefined, ns: string, query: Record<string, string> = {}): Signal<Obj[]> {
  const objects = useMemo(() => signal<Obj[]>([]), []);
  useEffect(() => {
    if (!kind) return;
    const path = listPath(kind, ns);
    const listing = new Listing(path, query);
    let closed = false;
    let reading = false;
    let stale = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const read = async () => {
      timer = undefined;
      reading = true;
      stale = false;
      try {
        const list = await api<{ items?: Obj[] }>("GET", `${path}?${new URLSearchParams({ ...query, limit: String(MOST) })}`);
        if (!closed) objects.value = list.items ?? [];
      } catch {
        // The next change reads again.
      }
      reading = false;
      if (stale && !closed) timer ??= setTimeout(read, PAUSE);
    };
    const end = listing.version.subscribe(() => {
      if (!listing.synced.peek()) return;
      stale = true;
      if (!reading) timer ??= setTimeout(read, objects.peek().length ? PAUSE : 0);
    });
    return () => {
      closed = true;
      clearTimeout(timer);
      end();
      listing.close();
    };
  }, []);
  return objects;
}
