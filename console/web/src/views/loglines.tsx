// SPDX-License-Identifier: Apache-2.0

// Log lines on the screen. A long line is cut into pieces as wide as the screen, so that all pieces have one height and
// only those in sight need to be in the page.

import { type ReadonlySignal, type Signal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import type { RefObject } from "preact";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { type Span, spansOf, plainText } from "../base/ansi";
import type { Expression } from "../base/expression";
import { readable } from "../base/logjson";
import { type Cut, INDENT, type Piece, Pieces } from "../model/logpieces";
import type { LogLine, Source } from "../model/loglines";
import type { Log } from "../model/logs";
import { S } from "../base/strings";
import { visible } from "../base/text";

export interface LogScroll {
  by(lines: number): void;
}

export interface LogFilter {
  re: Expression;
  invert: boolean;
}

const HEIGHT = 18;
const OVERSCAN = 10;
const EDGE = 4;
/** TIME is the width of a time, in characters; MIN_ROOM the least of a line's first piece. */
const TIME = 24;
const MIN_ROOM = 20;

interface Props {
  log: Log;
  filter: ReadonlySignal<LogFilter | null>;
  following: Signal<boolean>;
  wrap: Signal<boolean>;
  times: Signal<boolean>;
  json: Signal<boolean>;
  /** quiet is true when something else says why there are no lines. */
  quiet: boolean;
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
    const f = p.filter.value;
    const json = p.json.value;
    const width = p.wrap.value ? size.value.columns : Infinity;
    const before = new Map<Source, number>(p.log.sources.value.map((s) => [s, prefixOf(s, "", p).length + (p.times.value ? TIME : 0)]));
    return {
      text: (line) => shownText(line, json),
      keep: (_, text) => !f || f.re.test(text) !== f.invert,
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
  const toEnd = () => {
    const el = box.current;
    if (!el) return;
    own.current = true;
    el.scrollTop = el.scrollHeight;
    top.value = el.scrollTop;
  };
  const { pieces: all, gone } = shown.value;
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
  };

  const first = Math.max(0, Math.floor(top.value / HEIGHT) - OVERSCAN);
  const last = Math.min(all.length, first + Math.ceil(size.value.height / HEIGHT) + 2 * OVERSCAN);
  const mark = p.filter.value && !p.filter.value.invert ? p.filter.value.re : null;
  return (
    <div
      ref={box}
      class="log"
      tabIndex={0}
      role="log"
      aria-live="off"
      aria-label={S.logs.lines}
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
      {all.length === 0 && !(p.quiet && !p.filter.value) && <p class="empty">{p.filter.value ? S.logs.noMatch : S.logs.none}</p>}
      <div style={{ height: all.length * HEIGHT + "px" }}>
        <div style={{ transform: `translateY(${first * HEIGHT}px)` }}>
          {all.slice(first, last).map((piece, i) => (
            <PieceLine
              key={first + i}
              piece={piece}
              json={p.json.value}
              mark={mark}
              prefix={
                piece.from === 0
                  ? prefixOf(piece.line.source, p.times.value ? piece.line.at.slice(0, TIME - 1) : "", p)
                  : " ".repeat(INDENT)
              }
            />
          ))}
        </div>
      </div>
    </div>
  );
}

/** prefixOf is what is before a line's text: its time and where it is from. */
function prefixOf(s: Source, at: string, p: Props): string {
  const time = at && at.padEnd(TIME, " ");
  const sources = p.log.sources.value;
  if (sources.length < 2) return time;
  const containers = sources.some((x) => x.pod === s.pod && x.container !== s.container);
  return time + s.pod + (containers ? "/" + s.container : "") + " ";
}

function PieceLine({ piece, json, mark, prefix }: { piece: Piece; json: boolean; mark: Expression | null; prefix: string }) {
  const { line, from, to } = piece;
  const spans = line.text.includes("\u001b") && shownText(line, json) === shownText(line, false) ? spansOf(line.text) : null;
  return (
    <div class="log-line">
      <span class={"source c" + line.source.color}>{prefix}</span>
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
