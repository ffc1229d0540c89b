// SPDX-License-Identifier: Apache-2.0

// Log lines on the screen. A long line is cut into pieces as wide as the screen, so that all pieces have one height and
// only those in sight need to be in the page.

import { type ReadonlySignal, type Signal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import type { RefObject } from "preact";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { announce } from "../base/announce";
import { type Span, spansOf, plainText } from "../base/ansi";
import type { Expression } from "../base/expression";
import { readable } from "../base/logjson";
import { DEBUG } from "../base/loglevel";
import { type Cut, INDENT, type Piece, Pieces } from "../model/logpieces";
import { type LogLine, levelOfLine, type Source } from "../model/loglines";
import type { Log } from "../model/logs";
import { S } from "../base/strings";
import { visible } from "../base/text";

export interface LogScroll {
  by(lines: number): void;
  /** find goes to the next line that matches (1), to the one before (-1), or stays at the one that was gone to (0). */
  find(step: number): void;
}

/** Wanted says which lines are shown. */
export interface Wanted {
  re: Expression | null;
  invert: boolean;
  /** only is true when only lines that match are shown. */
  only: boolean;
  /** level is the mildest that is shown, by loglevel.ts. */
  level: number;
}

/** Found is how many lines match, and the number of the one that was gone to, from 1; 0 for none. */
export interface Found {
  at: number;
  count: number;
}

const HEIGHT = 18;
const OVERSCAN = 10;
const EDGE = 4;
/** MIN_ROOM is the least width of a line's first piece, in characters. */
const MIN_ROOM = 20;
/** NARROW is the width of a screen on which a pod's name would take too much of each line, in characters. */
const NARROW = 70;

interface Props {
  log: Log;
  wanted: ReadonlySignal<Wanted>;
  found: Signal<Found>;
  following: Signal<boolean>;
  wrap: Signal<boolean>;
  times: Signal<boolean>;
  json: Signal<boolean>;
  /** quiet is true when something else says why there are no lines. */
  quiet: boolean;
  /** job is the Job whose lines stand out. */
  job: string;
  scroll: RefObject<LogScroll | null>;
}

/** shownText is a line's text as it is shown: without colour codes, other control characters visible, JSON in words if wanted. */
function shownText(line: LogLine, json: boolean): string {
  if (json) return (line.words ??= visible(readable(plainText(line.text))));
  return (line.shown ??= visible(plainText(line.text)));
}

export function LogLines(p: Props) {
  const box = useRef<HTMLDivElement>(null);
  const top = useSignal(0);
  const size = useSignal({ height: 600, columns: 120 });
  const ruler = useRef<HTMLSpanElement>(null);

  useLayoutEffect(() => {
    const el = box.current!;
    const measure = () => {
      const ch = ruler.current!.getBoundingClientRect().width / 20 || 7.2;
      size.value = { height: el.clientHeight, columns: Math.max(20, Math.floor((el.clientWidth - 24) / ch)) };
    };
    const resized = new ResizeObserver(measure);
    resized.observe(el);
    measure();
    return () => resized.disconnect();
  }, []);

  const cutting = useComputed<Cut>(() => {
    const { re, invert, only, level } = p.wanted.value;
    const json = p.json.value;
    const { columns } = size.value;
    const width = p.wrap.value ? columns : Infinity;
    const time = timeOf("", p.times.value, columns).length;
    const before = new Map<Source, number>(p.log.sources.value.map((s) => [s, time + nameOf(s, p.log, columns).length]));
    return {
      text: (line) => shownText(line, json),
      keep: (line) => level >= DEBUG || levelOfLine(line) <= level,
      match: re && ((text) => re.test(text) !== invert),
      only,
      room: (line) => Math.max(MIN_ROOM, width - (before.get(line.source) ?? 0)),
      width,
    };
  });
  const pieces = useMemo(() => new Pieces(), []);
  const shown = useComputed(() => {
    p.log.version.value;
    return pieces.update(p.log, cutting.value);
  });

  // While it follows, the end is in sight; scrolling up stops that, so that text does not run away from a reader.
  const own = useRef(false);
  const current = useSignal<LogLine | null>(null);
  const target = useRef<LogLine | null>(null);
  const toEnd = () => {
    const el = box.current;
    if (!el) return;
    own.current = true;
    el.scrollTop = el.scrollHeight;
    top.value = el.scrollTop;
  };
  const { pieces: all, hits, gone } = shown.value;
  useLayoutEffect(() => {
    if (p.following.peek()) toEnd();
  }, [shown.value]);
  useSignalEffect(() => {
    if (p.following.value) toEnd();
  });
  // Lines that were given up at the beginning move the rest up: a reader stays where they were.
  const goneSeen = useRef(0);
  useLayoutEffect(() => {
    const more = gone - goneSeen.current;
    goneSeen.current = gone;
    if (more > 0 && !p.following.peek() && box.current) box.current.scrollTop -= more * HEIGHT;
  }, [shown.value]);

  p.scroll.current = {
    by(lines) {
      const el = box.current!;
      if (lines < 0) p.following.value = false;
      el.scrollTop = lines === -Infinity ? 0 : el.scrollTop + lines * HEIGHT;
    },
    find(step) {
      const { pieces: now, hits: found } = shown.value;
      if (found.length === 0) return;
      let next = found.findIndex((x) => x.line === current.value);
      if (next >= 0) next = (next + step + found.length) % found.length;
      else if (p.following.value) next = found.length - 1;
      else {
        // From what is in sight.
        const place = now[Math.floor(top.value / HEIGHT)]?.place ?? 0;
        const after = found.findIndex((x) => x.place >= place);
        next = step >= 0 ? Math.max(0, after) : (after < 0 ? found.length : after) - 1;
        if (next < 0) next = found.length - 1;
      }
      p.following.value = false;
      current.value = target.current = found[next].line;
    },
  };
  // The line that was gone to is drawn a third of the screen below its upper edge, so that those before it are seen, too.
  useLayoutEffect(() => {
    const el = box.current!;
    const at = target.current ? all.findIndex((x) => x.line === target.current) : -1;
    target.current = null;
    if (at < 0) return;
    const before = el.scrollTop;
    el.scrollTop = Math.max(0, at * HEIGHT - el.clientHeight / 3);
    own.current = el.scrollTop !== before;
    top.value = el.scrollTop;
  }, [shown.value, current.value]);
  useLayoutEffect(() => {
    const at = current.value ? hits.findIndex((x) => x.line === current.value) + 1 : 0;
    const before = p.found.peek();
    if (at !== before.at || hits.length !== before.count) p.found.value = { at, count: hits.length };
  }, [shown.value, current.value]);

  const first = Math.max(0, Math.floor(top.value / HEIGHT) - OVERSCAN);
  const last = Math.min(all.length, first + Math.ceil(size.value.height / HEIGHT) + 2 * OVERSCAN);
  const { re, invert, level } = p.wanted.value;
  const mark = invert ? null : re;
  const { columns } = size.value;
  return (
    <div
      ref={box}
      class="log"
      tabIndex={0}
      role="log"
      aria-live="off"
      aria-label={S.logs.lines}
      onClick={(e) => {
        const name = (e.target as HTMLElement).closest<HTMLElement>(".source")?.title;
        if (name && columns < NARROW) announce(name);
      }}
      onScroll={(e) => {
        const el = e.currentTarget;
        const atEnd = el.scrollTop + el.clientHeight >= el.scrollHeight - EDGE;
        if (!own.current && el.scrollTop < top.peek() - 1 && !atEnd) p.following.value = false;
        else if (!own.current && atEnd) p.following.value = true;
        own.current = false;
        top.value = el.scrollTop;
      }}
    >
      <span class="ruler" ref={ruler} aria-hidden="true">
        00000000000000000000
      </span>
      {all.length === 0 && (p.log.lines.length > 0 || !p.quiet) && (
        <p class="empty">{p.log.lines.length > 0 && (re || level < DEBUG) ? S.logs.noMatch : S.logs.none}</p>
      )}
      <div style={{ height: all.length * HEIGHT + "px" }}>
        <div style={{ transform: `translateY(${first * HEIGHT}px)` }}>
          {all.slice(first, last).map((piece, i) => (
            <PieceLine
              key={first + i}
              piece={piece}
              json={p.json.value}
              mark={mark}
              time={timeOf(piece.line.at, p.times.value, columns)}
              name={nameOf(piece.line.source, p.log, columns)}
              class={(piece.line === current.value ? " current" : "") + (p.job && piece.line.source.job === p.job ? " newest" : "")}
            />
          ))}
        </div>
      </div>
    </div>
  );
}

/** timeOf is a line's time as it is shown before it; an empty one takes the same room. */
function timeOf(at: string, wanted: boolean, columns: number): string {
  if (!wanted) return "";
  return columns < NARROW ? at.slice(11, 19).padEnd(9, " ") : at.slice(0, 23).padEnd(24, " ");
}

/** nameOf says where a line is from, if there are several sources: by a number where a name would be too long. */
function nameOf(s: Source, log: Log, columns: number): string {
  const sources = log.sources.value;
  if (sources.length < 2) return "";
  return (columns < NARROW ? String(s.number) : fullName(s, sources)) + " ";
}

function fullName(s: Source, sources: readonly Source[]): string {
  return s.pod + (sources.some((x) => x.pod === s.pod && x !== s) ? "/" + s.container : "");
}

interface LineProps {
  piece: Piece;
  json: boolean;
  mark: Expression | null;
  time: string;
  name: string;
  class: string;
}

function PieceLine({ piece, json, mark, time, name, class: more }: LineProps) {
  const { line, from, to } = piece;
  const { source } = line;
  const spans = line.text.includes("\u001b") && shownText(line, json) === shownText(line, false) ? spansOf(line.text) : null;
  return (
    <div class={"log-line" + more}>
      {from > 0 ? (
        " ".repeat(INDENT)
      ) : (
        <span class={"source c" + source.color} title={visible(source.pod + "/" + source.container)}>
          {time + name}
        </span>
      )}
      {spans
        ? cut(spans, from, to).map((s, i) => (
            <span key={i} class={s.style}>
              {marked(s.text, mark)}
            </span>
          ))
        : marked(shownText(line, json).slice(from, to), mark)}
    </div>
  );
}

/** cut gives the part of styled text between two positions. */
function cut(spans: Span[], from: number, to: number): Span[] {
  const out: Span[] = [];
  let at = 0;
  for (const s of spans) {
    const text = visible(s.text);
    const a = Math.max(from - at, 0);
    const b = Math.min(to - at, text.length);
    if (a < b) out.push({ text: text.slice(a, b), style: s.style });
    at += text.length;
  }
  return out;
}

function marked(text: string, mark: Expression | null) {
  if (!mark) return text;
  const out: (string | preact.JSX.Element)[] = [];
  let at = 0;
  for (const [from, to] of mark.marks(text)) {
    out.push(text.slice(at, from), <mark key={from}>{text.slice(from, to)}</mark>);
    at = to;
  }
  out.push(text.slice(at));
  return out;
}
