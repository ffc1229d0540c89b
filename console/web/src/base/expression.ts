// SPDX-License-Identifier: Apache-2.0

// Regular expressions that people type, and that a link may hold. The browser's own engine tries every way in which an
// expression can match, and nothing stops it: one such as (a+)+$ takes for ever. So the number of ways is estimated
// before, and the text is cut to a length at which they are few. What is still too much is looked for as it stands.

import { costOf } from "./cost";

/** LONGEST is the length of an expression, in characters; a longer one is looked for as it stands. */
const LONGEST = 200;

/** STEPS is how many steps one match may need by the estimate. */
const STEPS = 100_000_000;

/** SHORTEST is the least that an expression is allowed to see of a text. */
const SHORTEST = 100;

/** PATIENCE is the time that slow matches may take together, in milliseconds; each has FREE of its own. */
const PATIENCE = 500;
const FREE = 0.2;

const SIGNS = /[.*+?^${}()|[\]\\]/;

export class Expression {
  private one: RegExp;
  private all: RegExp;
  private length = Infinity;
  private spent = 0;

  /** flags are more of them than those of a search that does not care for case. */
  constructor(
    private readonly text: string,
    flags = "",
  ) {
    const length = SIGNS.test(text) ? lengthFor(text) : 0;
    const used = length < SHORTEST ? asItStands(text) : text;
    if (used === text) this.length = length || Infinity;
    this.one = new RegExp(used, "i" + flags);
    this.all = new RegExp(used, "gi" + flags);
  }

  test(text: string): boolean {
    return this.timed(() => this.one.test(text.slice(0, this.length)));
  }

  /** marks gives the parts of a text that match, from and to. */
  marks(text: string): [number, number][] {
    const found = this.timed(() => [...text.slice(0, this.length).matchAll(this.all)]);
    return found.filter((m) => m[0]).map((m) => [m.index, m.index + m[0].length]);
  }

  /** timed gives up the expression when it has been slow for long, or is too large for the engine. */
  private timed<T>(match: () => T): T {
    const from = performance.now();
    try {
      return match();
    } catch (err) {
      if (this.length === Infinity) throw err;
      this.giveUp();
      return match();
    } finally {
      this.spent += Math.max(0, performance.now() - from - FREE);
      if (this.spent > PATIENCE) this.giveUp();
    }
  }

  private giveUp(): void {
    this.length = Infinity;
    this.one = new RegExp(asItStands(this.text), "i");
    this.all = new RegExp(asItStands(this.text), "gi");
  }
}

function asItStands(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

/** lengthFor is how much of a text an expression may see; 0 for one that is not used as an expression. */
function lengthFor(text: string): number {
  if (text.length > LONGEST) return 0;
  try {
    new RegExp(text);
  } catch {
    return 0;
  }
  const cost = costOf(text);
  if (!cost) return 0;
  // The search begins at each place of the text, and each repetition ends at each place after that.
  const degree = 1 + cost.degree + (cost.scans && cost.degree === 0 ? 1 : 0);
  let orders = 1;
  for (let i = 2; i <= degree; i++) orders *= i;
  return Math.floor(((STEPS * orders) / cost.ways) ** (1 / degree));
}

/** isTooMuch says whether text looks like an expression that is looked for as it stands, for its cost. */
export function isTooMuch(text: string): boolean {
  if (!SIGNS.test(text)) return false;
  try {
    new RegExp(text);
  } catch {
    return false;
  }
  return lengthFor(text) < SHORTEST;
}
