// SPDX-License-Identifier: Apache-2.0

// Log lines as pieces that are as wide as the screen at most. Only lines that are new are looked at: a log of 50,000
// lines that is looked at anew with each frame would take all of a processor.

import type { LogLine, LogLines } from "./loglines";

export interface Piece {
  line: LogLine;
  /** place is the line's in its log. */
  place: number;
  /** from and to are positions in the line's text as it is shown. */
  from: number;
  to: number;
}

/** Cut says which lines are shown, and how they are cut. */
export interface Cut {
  text(line: LogLine): string;
  /** keep says whether a line is looked at, before its text is. */
  keep(line: LogLine): boolean;
  /** match says whether a text is what is looked for; null when nothing is. */
  match: ((text: string) => boolean) | null;
  /** only is true when only lines that match are shown. */
  only: boolean;
  /** room is how many characters a line's first piece has; width how many a screen has. Both may be Infinity. */
  room(line: LogLine): number;
  width: number;
}

/** Shown is a new one after each change. */
export interface Shown {
  pieces: readonly Piece[];
  /** hits are the first pieces of the lines that match. */
  hits: readonly Piece[];
  /** gone counts pieces at the beginning that were given up. */
  gone: number;
}

/** INDENT is before each further piece of a line. */
export const INDENT = 2;

export class Pieces {
  private readonly pieces: Piece[] = [];
  private readonly hits: Piece[] = [];
  private shown: Shown = { pieces: this.pieces, hits: this.hits, gone: 0 };
  private cut: Cut | null = null;

  /** update follows a log. It gives the same value as before when nothing in sight of the filter has changed. */
  update(log: LogLines, cut: Cut): Shown {
    const { pieces } = this;
    let from = log.changed;
    log.changed = Infinity;
    if (cut !== this.cut) {
      this.cut = cut;
      from = 0;
    }
    const gone = dropBefore(pieces, log.dropped);
    dropBefore(this.hits, log.dropped);
    const cutOff = dropFrom(pieces, from);
    dropFrom(this.hits, from);
    const kept = pieces.length;
    for (let i = Math.max(0, from - log.dropped); i < log.lines.length; i++) this.add(log.lines[i], log.dropped + i, cut);
    if (gone > 0 || cutOff > 0 || pieces.length > kept || from === 0) {
      this.shown = { pieces, hits: this.hits, gone: this.shown.gone + gone };
    }
    return this.shown;
  }

  private add(line: LogLine, place: number, cut: Cut): void {
    if (!cut.keep(line)) return;
    const text = cut.text(line);
    const hit = cut.match?.(text) ?? false;
    if (cut.match && cut.only && !hit) return;
    const first = this.pieces.length;
    let at = 0;
    let room = cut.room(line);
    while (text.length - at > room) {
      const to = breakAt(text, at, room);
      this.pieces.push({ line, place, from: at, to });
      at = to;
      room = cut.width - INDENT;
    }
    this.pieces.push({ line, place, from: at, to: text.length });
    if (hit) this.hits.push(this.pieces[first]);
  }
}

/** dropBefore gives up pieces of lines before a place, and says how many. */
function dropBefore(pieces: Piece[], place: number): number {
  let n = 0;
  while (n < pieces.length && pieces[n].place < place) n++;
  if (n > 0) pieces.splice(0, n);
  return n;
}

/** dropFrom gives up pieces of lines from a place on, and says how many. */
function dropFrom(pieces: Piece[], place: number): number {
  const before = pieces.length;
  while (pieces.length > 0 && pieces[pieces.length - 1].place >= place) pieces.pop();
  return before - pieces.length;
}

/** breakAt is where a line that is too long for a screen is broken: after a word, if that leaves no more than half empty. */
function breakAt(text: string, from: number, room: number): number {
  const space = text.lastIndexOf(" ", from + room - 1);
  return space >= from + room / 2 ? space + 1 : from + room;
}
