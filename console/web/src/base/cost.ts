// SPDX-License-Identifier: Apache-2.0

// In how many ways a regular expression can match a text, estimated from above.

export interface Cost {
  /** ways is the number of ways but for repetitions. */
  ways: number;
  /** degree is how many repetitions can end at any place, and so multiply the ways by the length of the text. */
  degree: number;
  /** scans is true with repetitions that end at one place only. */
  scans: boolean;
  /** size is how much there is after counted repetitions are written out. */
  size: number;
}

/** Item is a part of a sequence. */
interface Item extends Cost {
  /** set says, of each character that is tried, whether the part begins with it; it is not known of groups. */
  set?: boolean[];
  /** repeats is true for a set that may be there any number of times, least is how many times at least. */
  repeats?: boolean;
  least: number;
}

const MAX_SIZE = 2_000;
const MAX_WAYS = 10_000_000;
const MAX_DEGREE = 8;

class TooMuch extends Error {}

/** costOf reads an expression that the browser accepts; null for one that is not to be used. */
export function costOf(text: string): Cost | null {
  try {
    return new Reader(text).read();
  } catch (err) {
    if (err instanceof TooMuch) return null;
    throw err;
  }
}

class Reader {
  private at = 0;
  private readonly tried: string[];

  constructor(private readonly text: string) {
    // The ends of all ranges are in the text: two sets that overlap do so in one of these characters.
    const ascii = Array.from({ length: 256 }, (_, i) => String.fromCharCode(i));
    this.tried = [...ascii, "\u0130", "\u017f", "\u2028", "\u212a", "\u4e00", "\ue000", ...text.split("")];
  }

  read(): Cost {
    const c = this.choice();
    if (this.at < this.text.length) throw new TooMuch();
    return c;
  }

  /** choice reads parts with "|" between them. */
  private choice(): Cost {
    const branches = [this.sequence()];
    while (this.text[this.at] === "|") {
      this.at++;
      branches.push(this.sequence());
    }
    const firsts = branches.map((b) => b.first);
    const apart = firsts.every((a, i) => a && firsts.every((b, j) => i === j || (b && disjoint(a, b))));
    const ways = branches.map((b) => b.cost.ways);
    return {
      // Branches that begin with different characters are never tried one after the other.
      ways: check(branches.length > 1 && !apart ? ways.reduce((x, y) => x + y) : Math.max(...ways), MAX_WAYS),
      degree: Math.max(...branches.map((b) => b.cost.degree)),
      scans: branches.some((b) => b.cost.scans),
      size: check(
        branches.reduce((n, b) => n + b.cost.size, 0),
        MAX_SIZE,
      ),
    };
  }

  private sequence(): { cost: Cost; first?: boolean[] } {
    const items: Item[] = [];
    while (this.at < this.text.length && this.text[this.at] !== "|" && this.text[this.at] !== ")") items.push(this.quantified());
    const cost: Cost = { ways: 1, degree: 0, scans: false, size: 0 };
    items.forEach((item, i) => {
      const next = items[i + 1];
      // A repetition that cannot take the character after it ends at one place only.
      const ends = item.repeats && item.set && next?.set && next.least > 0 && disjoint(item.set, next.set);
      cost.ways = check(cost.ways * item.ways, MAX_WAYS);
      cost.degree = check(cost.degree + item.degree + (item.repeats && !ends ? 1 : 0), MAX_DEGREE);
      cost.scans ||= item.scans || !!item.repeats;
      cost.size = check(cost.size + item.size, MAX_SIZE);
    });
    return { cost, first: items[0]?.least > 0 ? items[0].set : undefined };
  }

  private quantified(): Item {
    const item = this.atom();
    const m = /^(?:([*+?])|\{(\d+)(,)?(\d*)\})\??/.exec(this.text.slice(this.at));
    if (!m) return item;
    this.at += m[0].length;
    const least = m[1] ? (m[1] === "+" ? 1 : 0) : Number(m[2]);
    const most = m[1] ? (m[1] === "?" ? 1 : Infinity) : m[3] ? (m[4] ? Number(m[4]) : Infinity) : least;
    const single = item.ways === 1 && item.degree === 0;
    if (most > 20 && most !== least) {
      // A repetition of what can match in many ways is what takes for ever.
      if (!single) throw new TooMuch();
      return { ...item, repeats: true, least, size: check(item.size * Math.max(1, least, most === Infinity ? 0 : most), MAX_SIZE) };
    }
    const times = Math.max(1, most);
    return {
      ways: check(item.ways ** times * (most - least + 1), MAX_WAYS),
      degree: check(item.degree * times, MAX_DEGREE),
      scans: item.scans,
      size: check(item.size * times, MAX_SIZE),
      set: most === least ? item.set : undefined,
      least,
    };
  }

  private atom(): Item {
    const rest = this.text.slice(this.at);
    // Looking back reads from right to left, and flags change what a set is: neither is estimated here.
    if (/^\(\?(?!:|=|!|<[^=!])/.test(rest)) throw new TooMuch();
    const group = /^\((\?(?:[:=!]|<[^>]+>))?/.exec(rest);
    if (group) {
      this.at += group[0].length;
      const inside = this.choice();
      if (this.text[this.at] !== ")") throw new TooMuch();
      this.at++;
      return { ...inside, least: 1 };
    }
    // What refers to a group that was matched before makes every estimate void.
    if (/^\\(?:[1-9]|k)/.test(rest)) throw new TooMuch();
    const one = /^(?:\\(?:u\{[^}]*\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|c[A-Za-z]|[^])|\[(?:\\[^]|[^\]\\])*\]|[^])/.exec(rest);
    if (!one) throw new TooMuch();
    this.at += one[0].length;
    const plain: Item = { ways: 1, degree: 0, scans: false, size: 1, least: 1 };
    if (/^(?:\^|\$|\\b|\\B)$/.test(one[0])) return { ...plain, least: 0 };
    // Characters that are written by number are not among those that are tried.
    if (/\\[uxcpP0]/.test(one[0])) return plain;
    return { ...plain, set: this.setOf(one[0]) };
  }

  private setOf(source: string): boolean[] | undefined {
    try {
      const re = new RegExp("^(?:" + source + ")$", "is");
      return this.tried.map((c) => re.test(c));
    } catch {
      return undefined;
    }
  }
}

function disjoint(a: boolean[], b: boolean[]): boolean {
  return !a.some((x, i) => x && b[i]);
}

function check(n: number, most: number): number {
  if (!(n <= most)) throw new TooMuch();
  return n;
}
