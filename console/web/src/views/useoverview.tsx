// SPDX-License-Identifier: Apache-2.0

// The overview's part on use. It comes after what is wrong, and is none of it.

import { useComputed, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { kindByWord } from "../api/kinds";
import { hrefOf } from "../api/route";
import { O } from "../base/overviewstrings";
import { visible } from "../base/text";
import type { Listing } from "../model/listing";
import { measure } from "../model/meter";
import { amount, type Figures, percent } from "../model/usage";
import { useCards } from "../model/usecards";
import { measured } from "../model/useusage";

/** SHOWN is how many cards there are at most. */
const SHOWN = 5;

export function UseOverview({ pods, ns }: { pods: Listing; ns: string }) {
  const figures = useSignal<Figures | null>(null);
  useEffect(() => (measured("pods") ? measure("pods", ns, (f) => (figures.value = f)) : undefined), []);
  const cards = useComputed(() => (figures.value && pods.synced.value ? useCards(pods.rows.values(), figures.value) : []));
  if (cards.value.length === 0) return null;
  return (
    <section aria-label={O.use.title}>
      <h2>{O.use.title}</h2>
      <ul class="cards">
        {cards.value.slice(0, SHOWN).map((c) => {
          const k = kindByWord(c.kind.toLowerCase());
          const name = `${c.ns}/${c.name}`;
          return (
            <li key={c.kind + name} class="card passing-card">
              <div class="card-head">
                <strong class="passing">{c.near ? O.use.near : O.use.above[c.what]}</strong>
                {k ? (
                  <a href={hrefOf(k, c)}>
                    {visible(c.kind)} <strong>{visible(name)}</strong>
                  </a>
                ) : (
                  visible(c.kind + " " + name)
                )}
              </div>
              <div>
                {c.near ? O.use.nearText(amount(c.used, 1), percent(c.share)) : O.use.aboveText(amount(c.used, c.what), percent(c.share))}
              </div>
            </li>
          );
        })}
      </ul>
      {cards.value.length > SHOWN && <p class="faint">{O.use.more(cards.value.length - SHOWN)}</p>}
    </section>
  );
}
