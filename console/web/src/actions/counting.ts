// SPDX-License-Identifier: Apache-2.0

// How many objects a deletion takes with it: lists of metadata with a limit of one, for which the server says how many
// more there are.

import { api } from "../api/client";
import { isKind, type Kind, kinds, label, listPath } from "../api/kinds";
import { type Count, type Counted, sum } from "../model/deletion";

const AS_METADATA = { Accept: "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json" };

/** MOST is how many kinds are counted, and AT_ONCE how many requests there are at once. */
const MOST = 200;
const AT_ONCE = 4;

/** counted are the kinds whose objects in a namespace are worth a number: not events, nor what is computed. */
function counted(): Kind[] {
  return kinds.value.filter(
    (k) =>
      k.namespaced &&
      k.verbs.includes("list") &&
      k.verbs.includes("delete") &&
      !isKind(k, "", "events") &&
      !isKind(k, "events.k8s.io", "events"),
  );
}

/** countInside counts the objects of a namespace until it is over. */
export function countInside(ns: string, over: () => boolean): Promise<Count> {
  return count(counted(), ns, over);
}

/** countOf counts the objects of one kind in the whole cluster. */
export function countOf(k: Kind): Promise<Count> {
  return count([k], "", () => false);
}

async function count(all: Kind[], ns: string, over: () => boolean): Promise<Count> {
  const found: Counted[] = [];
  const rest = all.slice(0, MOST);
  const work = async () => {
    for (let k = rest.shift(); k && !over(); k = rest.shift()) {
      const list = await api<Counted["list"]>("GET", listPath(k, ns) + "?limit=1", undefined, AS_METADATA).catch(() => null);
      found.push({ name: label(k), list });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  const out = sum(found);
  return { ...out, partial: out.partial || all.length > MOST };
}
