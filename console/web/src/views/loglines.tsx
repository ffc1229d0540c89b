// SPDX-License-Identifier: Apache-2.0

// Log lines on the screen. A long line is cut into pieces as wide as the screen, so that all pieces have one height and
// only those in sight need to be in the page.

import { type ReadonlySignal, type Signal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import type { RefObject } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { type Span, spansOf, plainText } from "../base/ansi";
import type { Expression } from "../base/expression";
import { readable } from "../base/logjson";
import type { Log, LogLine } from "../model/logs";
import { S } from "../base/strings";
import { visible } from "../base/text";

export interface LogScroll {
  by(lines: number): void;
}

export interface LogFilter {
  re: Expression;
  invert: boolean;
}

interface Piece {
  line: LogLine;
  /** from and to are positions in the line's text as it is shown. */
  from: number;
  to: number;
}

const HEIGHT = 18;
const OVERSCAN = 10;
const EDGE = 4;

interface Props {
  log: Log;
  filter: ReadonlySignal<LogFilter | null>;
  following: Signal<boolean>;
  wrap: Signal<boolean>;
  times: Signal<boolean>;
  json: Signal<boolean>;
  named: boolean;
  scroll: RefObject<LogScroll | null>;
}

/** shownText is a line's text as it is shown: without colour codes, other control characters visible, JSON in words if wanted. */
const texts = [new WeakMap<LogLine, string>(), new WeakMap<LogLine, string>()];
function shownText(line: LogLine, json: boolean): string {
  const known = texts[Number(json)];
  let t = known.get(line);
  if (t === undefined) {
    const plain = plainText(line.text);
    t = visible(json ? readable(plain) : plain);
    known.set(line, t);
  }
  return t;
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

  const pieces = useComputed(() => {
    p.log.version.value;
    const f = p.filter.value;
    const width = p.wrap.value ? size.value.columns : Infinity;
    const out: Piece[] = [];
    for (const line of p.log.lines) {
      const text = shownText(line, p.json.value);
      if (f && f.re.test(text) === f.invert) continue;
      const room = width - prefixOf(line, p).length;
      if (text.length <= room) {
        out.push({ line, from: 0, to: text.length });
        continue;
      }
      out.push({ line, from: 0, to: room });
      for (let at = room; at < text.length; at += width - 2) out.push({ line, from: at, to: Math.min(text.length, at + width - 2) });
    }
    return out;
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
  const all = pieces.value;
  useLayoutEffect(() => {
    if (p.following.peek()) toEnd();
  }, [all]);
  useSignalEffect(() => {
    if (p.following.value) toEnd();
  });
  // Lines that were given up at the beginning move the rest up: a reader stays where they were.
  const droppedSeen = useRef(0);
  useLayoutEffect(() => {
    const gone = p.log.dropped - droppedSeen.current;
    droppedSeen.current = p.log.dropped;
    if (gone > 0 && !p.following.peek() && box.current) box.current.scrollTop -= gone * HEIGHT;
  }, [all]);

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
      {all.length === 0 && <p class="empty">{p.filter.value ? S.logs.noMatch : S.logs.none}</p>}
      <div style={{ height: all.length * HEIGHT + "px" }}>
        <div style={{ transform: `translateY(${first * HEIGHT}px)` }}>
          {all.slice(first, last).map((piece, i) => (
            <PieceLine
              key={first + i}
              piece={piece}
              json={p.json.value}
              mark={mark}
              prefix={piece.from === 0 ? prefixOf(piece.line, p) : "  "}
            />
          ))}
        </div>
      </div>
    </div>
  );
}

/** prefixOf is what is before a line's text: its time and where it is from. */
function prefixOf(line: LogLine, p: Props): string {
  const time = p.times.value ? line.at.slice(0, 23).padEnd(24, " ") : "";
  if (!p.named) return time;
  const s = line.source;
  const containers = p.log.sources.value.some((x) => x.pod === s.pod && x.container !== s.container);
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
