// SPDX-License-Identifier: Apache-2.0

// Answers that stay true: they are read again when the listing of a kind's rows says that one of them has changed. For
// kinds with few objects, of which the server's tables do not print what is needed.

import { signal, type Signal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { api, reasonOf } from "../api/client";
import { type Kind, listPath } from "../api/kinds";
import { Listing } from "./listing";

/** PAUSE is the shortest time between two readings, in milliseconds. MOST bounds how many objects are read. */
const PAUSE = 1_000;
const MOST = 500;

type Obj = Record<string, any>;

interface Answer<T> {
  value: T | null;
  error: string;
}

/** useReread reads at once, and again whenever an object of the kind changes. */
export function useReread<T>(kind: Kind | undefined, ns: string, query: Record<string, string>, read: () => Promise<T>): Signal<Answer<T>> {
  const answer = useMemo(() => signal<Answer<T>>({ value: null, error: "" }), []);
  useEffect(() => {
    let closed = false;
    let reading = false;
    let stale = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const again = async () => {
      timer = undefined;
      reading = true;
      stale = false;
      try {
        const value = await read();
        if (!closed) answer.value = { value, error: "" };
      } catch (err) {
        if (!closed) answer.value = { ...answer.value, error: reasonOf(err) };
      }
      reading = false;
      if (stale && !closed) timer ??= setTimeout(again, PAUSE);
    };
    void again();
    if (!kind)
      return () => {
        closed = true;
      };
    const listing = new Listing(listPath(kind, ns), query);
    const end = listing.version.subscribe(() => {
      if (!listing.synced.peek()) return;
      stale = true; // also with the first list: something may have changed between the answer and that
      if (!reading) timer ??= setTimeout(again, PAUSE);
    });
    return () => {
      closed = true;
      clearTimeout(timer);
      end();
      listing.close();
    };
  }, []);
  return answer;
}

/** useWholeList follows the objects of a kind; none while they are not known, for no kind, and for users who may not. */
export function useWholeList(kind: Kind | undefined, ns: string, query: Record<string, string> = {}): Signal<Answer<Obj[]>> {
  return useReread(kind, ns, query, async () => {
    if (!kind) return [];
    const list = await api<{ items?: Obj[] }>("GET", `${listPath(kind, ns)}?${new URLSearchParams({ ...query, limit: String(MOST) })}`);
    return list.items ?? [];
  });
}
