// SPDX-License-Identifier: Apache-2.0

// The lines of one or many containers, merged by their times. A log that was cut off goes on at its last line: nothing
// is lost and nothing is there twice.

import { signal } from "@preact/signals";
import { type Client, type Message, type Request, Stream } from "../api/connection";
import { continues } from "../base/loglevel";
import { type LogLine, LogLines, type Source, timeKey } from "./loglines";
import { S } from "../base/strings";

/** State is what a pod says when a log of it has ended. */
export interface State {
  /** over is true when the container will not run again, so that its log is whole. */
  over: boolean;
  /** why is the reason why the container does not run; empty when it is not known. */
  why: string;
}

export interface LogOptions {
  previous: boolean;
  sinceSeconds: string;
  tailLines: string;
}

const RETRY_MIN = 2_000;
const RETRY_MAX = 15_000;

/** LogSource is one container's log. */
export class LogSource implements Client, Source {
  readonly watch = false;
  readonly state = signal<"open" | "ended" | "waiting">("open");
  readonly message_ = signal("");
  private lastKey = "";
  private lastAt = "";
  /** atLast counts the lines with the last time, and skip those that are sent a second time. */
  private atLast = 0;
  private skip = 0;
  private resumed = false;
  /** head is the last line that does not belong to one before. */
  private head: LogLine | null = null;
  private stream: Stream | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private delay = RETRY_MIN;

  constructor(
    private readonly log: Log,
    readonly pod: string,
    readonly container: string,
    readonly color: number,
    readonly job: string,
    readonly number: number,
    private readonly path: string,
    private readonly options: LogOptions,
    private readonly look: () => Promise<State>,
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
      if (m.ok) this.state.value = "open";
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
    if (!key) return this.line(this.lastKey, this.lastAt, raw);
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
    return this.line(key, at, space < 0 ? "" : raw.slice(space + 1));
  }

  private line(key: string, at: string, text: string): LogLine {
    const head = continues(text) ? this.head : null;
    const line: LogLine = { key, at, text, source: this, shown: undefined, words: undefined, head, level: -1 };
    if (!head) this.head = line;
    return line;
  }

  private async ended(code: number, message: string): Promise<void> {
    if (this.options.previous || code === 401 || code === 403 || code === 404 || !this.stream) {
      this.message_.value = message;
      this.state.value = "ended";
      return;
    }
    const { over, why } = await this.look();
    this.message_.value = why || message;
    if (over && !code) {
      this.state.value = "ended";
      return;
    }
    this.state.value = "waiting";
    // The container runs again later, or does not run yet: its next log is joined to this one.
    if (!this.stream) return;
    this.timer = setTimeout(() => this.stream?.start(), this.delay);
    this.delay = Math.min(this.delay * 1.5, RETRY_MAX);
  }
}

/** Log is the merged lines of its sources. */
export class Log extends LogLines {
  readonly version = signal(0);
  readonly sources = signal<LogSource[]>([]);
  private pending = false;
  private count = 0;

  constructor(readonly options: LogOptions) {
    super();
  }

  open(pod: string, container: string, path: string, color: number, job: string, look: () => Promise<State>): LogSource {
    const source = new LogSource(this, pod, container, color, job, ++this.count, path, this.options, look);
    this.sources.value = [...this.sources.peek(), source];
    return source;
  }

  /** close ends some sources, and takes their lines away. */
  close(gone: Set<LogSource>): void {
    for (const s of gone) s.close();
    this.sources.value = this.sources.peek().filter((s) => !gone.has(s));
    this.remove((l) => gone.has(l.source as LogSource));
    this.bump();
  }

  closeAll(): void {
    for (const s of this.sources.peek()) s.close();
  }

  override add(lines: LogLine[]): void {
    super.add(lines);
    this.bump();
  }

  private bump(): void {
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

/** TAIL_LINES is how many lines of the end of a log are shown when no time is chosen. */
const TAIL_LINES = 500;

export function optionsOf(params: Record<string, string>): LogOptions {
  const since = params.since ?? "";
  return {
    previous: params.previous === "1",
    sinceSeconds: /^\d+$/.test(since) ? since : "",
    tailLines: since === "" ? String(TAIL_LINES) : "",
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
