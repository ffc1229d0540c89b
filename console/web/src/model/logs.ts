// SPDX-License-Identifier: Apache-2.0

// The lines of one or many containers, merged by their times. A log that was cut off goes on at its last line: nothing
// is lost and nothing is there twice.

import { signal } from "@preact/signals";
import { type Client, type Message, type Request, Stream } from "../api/connection";
import { S } from "../base/strings";

export interface LogLine {
  /** key sorts lines by time: seconds and nanoseconds with leading zeros. */
  key: string;
  /** at is the time as the server wrote it. */
  at: string;
  text: string;
  source: LogSource;
}

export interface LogOptions {
  previous: boolean;
  sinceSeconds: string;
  tailLines: string;
}

const MAX_LINES = 50_000;
const RETRY_MIN = 2_000;
const RETRY_MAX = 15_000;

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

/** LogSource is one container's log. */
export class LogSource implements Client {
  readonly watch = false;
  readonly state = signal<"open" | "ended" | "waiting">("open");
  readonly message_ = signal("");
  private lastKey = "";
  private lastAt = "";
  /** atLast counts the lines with the last time, and skip those that are sent a second time. */
  private atLast = 0;
  private skip = 0;
  private resumed = false;
  private stream: Stream | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private delay = RETRY_MIN;

  constructor(
    private readonly log: Log,
    readonly pod: string,
    readonly container: string,
    readonly color: number,
    private readonly path: string,
    private readonly options: LogOptions,
    /** over says whether the container will not run again, so that its log is whole. */
    private readonly over: () => Promise<boolean>,
  ) {
    this.stream = new Stream(this.request(), this);
  }

  private request(): Request {
    const o = this.options;
    const query: Record<string, string> = { container: this.container, timestamps: "true" };
    if (o.previous) query.previous = "true";
    else query.follow = "true";
    if (this.lastAt) {
      query.sinceTime = this.lastAt;
    } else {
      if (o.sinceSeconds) query.sinceSeconds = o.sinceSeconds;
      if (o.tailLines) query.tailLines = o.tailLines;
    }
    return { op: "log", path: this.path, query };
  }

  resume(): Request {
    this.resumed = this.lastKey !== "";
    this.skip = this.atLast;
    return this.request();
  }

  close(): void {
    clearTimeout(this.timer);
    this.stream?.close();
    this.stream = null;
  }

  message(m: Message): void {
    if (m.type === "lines") {
      this.state.value = "open";
      this.message_.value = "";
      this.delay = RETRY_MIN;
      const out: LogLine[] = [];
      for (const raw of m.lines) {
        const line = this.take(raw);
        if (line) out.push(line);
      }
      this.log.add(out);
    } else if (m.type === "state") {
      this.message_.value = m.ok ? "" : (m.message ?? "");
    } else if (m.type === "end") {
      void this.ended(m.code, m.message ?? "");
    }
  }

  /** take makes a line of text as it was sent; null when it was there before. */
  private take(raw: string): LogLine | null {
    const space = raw.indexOf(" ");
    const at = space < 0 ? raw : raw.slice(0, space);
    const key = timeKey(at);
    // A line without a time belongs to the one before.
    if (!key) return { key: this.lastKey, at: this.lastAt, text: raw, source: this };
    if (this.resumed) {
      if (key < this.lastKey) return null;
      if (key === this.lastKey && this.skip > 0) {
        this.skip--;
        return null;
      }
      if (key > this.lastKey) this.resumed = false;
    }
    if (key === this.lastKey) this.atLast++;
    else this.atLast = 1;
    this.lastKey = key;
    this.lastAt = at;
    return { key, at, text: space < 0 ? "" : raw.slice(space + 1), source: this };
  }

  private async ended(code: number, message: string): Promise<void> {
    this.message_.value = message;
    if (this.options.previous || code === 401 || code === 403 || code === 404 || !this.stream) {
      this.state.value = "ended";
      return;
    }
    this.state.value = "waiting";
    if (await this.over()) {
      this.state.value = code ? "waiting" : "ended";
      if (!code) return;
    }
    // The container runs again later, or does not run yet: its next log is joined to this one.
    if (!this.stream) return;
    this.timer = setTimeout(() => this.stream?.start(), this.delay);
    this.delay = Math.min(this.delay * 1.5, RETRY_MAX);
  }
}

/** Log is the merged lines of its sources. */
export class Log {
  readonly lines: LogLine[] = [];
  readonly version = signal(0);
  readonly sources = signal<LogSource[]>([]);
  /** dropped counts lines at the beginning that were given up for new ones. */
  dropped = 0;
  private pending = false;

  constructor(readonly options: LogOptions) {}

  open(pod: string, container: string, path: string, color: number, over: () => Promise<boolean>): void {
    this.sources.value = [...this.sources.value, new LogSource(this, pod, container, color, path, this.options, over)];
  }

  has(pod: string): boolean {
    return this.sources.value.some((s) => s.pod === pod);
  }

  close(): void {
    for (const s of this.sources.value) s.close();
  }

  /** add puts lines where their times belong; most belong at the end. */
  add(lines: LogLine[]): void {
    const all = this.lines;
    let ordered = true;
    for (const line of lines) {
      if (all.length && line.key < all[all.length - 1].key) ordered = false;
      all.push(line);
    }
    // The sort is stable: lines of the same time stay as they came.
    if (!ordered) all.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
    if (all.length > MAX_LINES) {
      this.dropped += all.length - MAX_LINES;
      all.splice(0, all.length - MAX_LINES);
    }
    if (this.pending) return;
    this.pending = true;
    const next = () => {
      this.pending = false;
      this.version.value++;
    };
    if (document.hidden) setTimeout(next, 500);
    else requestAnimationFrame(next);
  }

  /** text is the whole log, for a file. */
  text(): string {
    const many = this.sources.value.length > 1;
    return this.lines.map((l) => `${l.at} ${many ? l.source.pod + " " + l.source.container + " " : ""}${l.text}\n`).join("");
  }
}

export function optionsOf(params: Record<string, string>): LogOptions {
  const since = params.since ?? "";
  return {
    previous: params.previous === "1",
    sinceSeconds: /^\d+$/.test(since) ? since : "",
    tailLines: since === "" ? "500" : "",
  };
}

/** SINCE are the choices of how far back a log begins. */
export const SINCE: [value: string, label: string][] = [
  ["", S.logs.tail],
  ["60", S.logs.minute],
  ["300", S.logs.fiveMinutes],
  ["3600", S.logs.hour],
  ["86400", S.logs.day],
  ["all", S.logs.all],
];
