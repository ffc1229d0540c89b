// SPDX-License-Identifier: Apache-2.0

// The lines of a log in the order of their times, as many as are kept.

import { levelOf } from "../base/loglevel";

/** Source is the container that a line is from. */
export interface Source {
  /** number counts the sources of a log from 1. */
  readonly number: number;
  readonly pod: string;
  readonly container: string;
  readonly color: number;
  /** job is the Job of the pod, if it is one's. */
  readonly job: string;
}

export interface LogLine {
  /** key sorts lines by time: seconds and nanoseconds with leading zeros. */
  key: string;
  /** at is the time as the server wrote it. */
  at: string;
  text: string;
  source: Source;
  /** shown and words are the text as it is shown, and with JSON in words; undefined until they are needed. */
  shown: string | undefined;
  words: string | undefined;
  /** head is the line that this one belongs to, as those of a stack trace do. */
  head: LogLine | null;
  /** level is one of loglevel.ts; -1 until it is needed. */
  level: number;
}

/** MAX_LINES is how many lines are kept. */
const MAX_LINES = 50_000;

/** levelOfLine is a line's level, or that of the line that it belongs to. */
export function levelOfLine(line: LogLine): number {
  if (line.level < 0) line.level = levelOf((line.head ?? line).text);
  return line.level;
}

let second = "";
let secondKey = "";

/** timeKey makes text that sorts by time. The server cuts zeros at a time's end, and may write a zone. */
export function timeKey(at: string): string {
  const m = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)$/.exec(at);
  if (!m) return "";
  const whole = m[1] + m[3];
  if (whole !== second) {
    second = whole;
    secondKey = String(Date.parse(whole) / 1000).padStart(12, "0");
  }
  return secondKey + "." + (m[2] ?? "").padEnd(9, "0");
}

/** LogLines are lines. A line's place is how many lines there ever were before it: those that were given up count, too. */
export class LogLines {
  readonly lines: LogLine[] = [];
  /** dropped counts lines at the beginning that were given up for new ones. */
  dropped = 0;
  /** changed is the place of the first line that was put or moved since the reader has set it to Infinity. */
  changed = 0;

  constructor(private readonly most = MAX_LINES) {}

  /** add puts lines where their times belong; most belong at the end. */
  add(lines: LogLine[]): void {
    const all = this.lines;
    let from = all.length;
    let first = "";
    for (const line of lines) {
      if (all.length && line.key < all[all.length - 1].key && (!first || line.key < first)) first = line.key;
      all.push(line);
    }
    if (first) from = this.sort(first, from);
    this.changed = Math.min(this.changed, this.dropped + from);
    if (all.length > this.most) {
      this.dropped += all.length - this.most;
      all.splice(0, all.length - this.most);
    }
  }

  /** remove takes lines away. */
  remove(which: (line: LogLine) => boolean): void {
    const rest = this.lines.filter((l) => !which(l));
    this.lines.length = 0;
    for (const l of rest) this.lines.push(l);
    this.changed = this.dropped;
  }

  /** sort puts the lines that are later than a time in order, and gives the index of the first of them. */
  private sort(first: string, sorted: number): number {
    const all = this.lines;
    let from = sorted;
    while (from > 0 && all[from - 1].key > first) from--;
    // The sort is stable: lines of the same time stay as they came.
    const end = all.slice(from).sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
    for (let i = 0; i < end.length; i++) all[from + i] = end[i];
    return from;
  }
}
