// SPDX-License-Identifier: Apache-2.0

// The tab's one WebSocket. Lists, watches, logs and shells are numbered streams in it. When the connection is lost, it
// is opened again after 0.5 to 3 s and each stream goes on where it was.

import { signal } from "@preact/signals";
import { send as request } from "./client";
import { plainPath } from "./kinds";
import { checkPages, renewed, session, token } from "./session";
import { S } from "../base/strings";
import { clock } from "../base/text";

export interface Request {
  op: "list" | "object" | "log" | "exec" | "attach" | "search" | "drain";
  path: string;
  query?: Record<string, string>;
  rv?: string;
  command?: string[];
  tty?: boolean;
  /** paths are those of the lists that are searched. */
  paths?: string[];
}

/** Found is an object that a search has found. */
export interface Found {
  /** path is the one of the list that has it. */
  path: string;
  ns?: string;
  name: string;
  created?: string;
  label?: string;
}

export interface Column {
  name: string;
  type: string;
  priority: number;
  description: string;
}

export interface Row {
  uid: string;
  ns: string;
  name: string;
  cells: unknown[];
  created: string;
  deleting?: string;
  labels?: Record<string, string>;
  owner?: { kind: string; name: string };
  /**
   * use is what a pod requests and may use at most (CPU, memory, CPU, memory), or what a node has for pods (CPU, memory,
   * pods), if the list was asked for WITH_USE. CPU is in thousandths of a core, memory in bytes, 0 is none.
   */
  use?: number[];
  /** limits are those of each container and, under "", of the pod, unless they are simply the sum. */
  limits?: Record<string, [cpu: number, memory: number]>;
}

/** WITH_USE asks for what pods and nodes reserve, beside their rows. */
export const WITH_USE = { includeObject: "Object" };

export type Message =
  | { type: "columns"; columns: Column[] }
  | { type: "rows"; rows: Row[]; rv: string; remaining?: number }
  | { type: "synced"; rv: string }
  | { type: "changes"; set?: Row[]; del?: string[]; rv: string }
  | { type: "reset" }
  | { type: "state"; ok: boolean; reason?: string; message?: string }
  | { type: "object"; object: Record<string, any>; yaml: string }
  | { type: "deleted" }
  | { type: "lines"; lines: string[] }
  | { type: "data"; data: string; stream: number }
  | { type: "exit"; exit: number }
  | { type: "found"; found: Found[] | null; done: number; of: number; full: boolean; trouble?: string }
  | { type: "drain"; pod: string; state: string; message: string }
  | { type: "end"; code: number; reason?: string; message?: string };

/** troubleOf is what a state message says to a reader; empty when all is well. */
export function troubleOf(m: Message & { type: "state" }): string {
  if (m.ok) return "";
  return connected.peek() === "away" ? S.connection.old(clock(since.peek())) : m.message || S.connection.trouble;
}

/** Client is the user of a stream. */
export interface Client {
  message(m: Message): void;
  /** resume gives the request that goes on where the stream was; null when it cannot go on. */
  resume(): Request | null;
  /** watch is true for a stream that a hidden tab gives back. */
  watch: boolean;
}

/** REFUSED is the code by which the console ends a connection whose token the cluster does not accept any more. */
const REFUSED = 1008;

const HIDDEN_AFTER = 60_000;
const BACKOFF_MIN = 500;
const BACKOFF_MAX = 3_000;

/**
 * connected is "lost" from when a connection ended until the next one is open, and "away" while the console answers and
 * the cluster does not.
 */
export const connected = signal<"starting" | "open" | "lost" | "away">("starting");

/** since is when connected was last "open", in milliseconds, while it is "lost" or "away". */
export const since = signal(0);

function setConnected(now: "open" | "lost" | "away"): void {
  if (now === "open") since.value = 0;
  else since.value ||= Date.now();
  connected.value = now;
}

/** AWAY are the reasons for which no request to the cluster is answered. */
const AWAY = ["NoAnswer", "NoLeader"];

/** NEWS are what only a cluster that answers leads to. */
const NEWS = ["columns", "rows", "synced", "object"];

function observe(m: Message): void {
  if (m.type === "state" && !m.ok && AWAY.includes(m.reason ?? "")) setConnected("away");
  else if (connected.peek() === "away" && ((m.type === "state" && m.ok) || NEWS.includes(m.type))) setConnected("open");
}

let socket: WebSocket | null = null;
let backoff = BACKOFF_MIN;
let nextId = 1;
let retry: ReturnType<typeof setTimeout> | undefined;
let givenBack = false;
let hiddenTimer: ReturnType<typeof setTimeout> | undefined;
const streams = new Map<number, Stream>();
const idle = new Set<Stream>();

/** Stream is one numbered stream. */
export class Stream {
  id = 0;
  private sent = false;

  constructor(
    private first: Request | null,
    readonly client: Client,
  ) {
    if (givenBack && client.watch) idle.add(this);
    else this.start();
  }

  /** start sends the request under a new number, now or when the connection is open. */
  start(): void {
    const next = this.sent ? this.client.resume() : this.first;
    streams.delete(this.id);
    if (!next) {
      this.client.message({ type: "end", code: 0, reason: "ConnectionLost" });
      return;
    }
    this.id = nextId++;
    streams.set(this.id, this);
    connect();
    if (socket?.readyState === WebSocket.OPEN) {
      this.sent = true;
      write({ id: this.id, ...next, path: plainPath(next.path) });
    }
  }

  send(message: Record<string, unknown>): void {
    write({ id: this.id, ...message });
  }

  close(): void {
    idle.delete(this);
    if (streams.delete(this.id)) write({ id: this.id, op: "close" });
  }

  /** giveBack ends the stream on the server until the tab is shown again. */
  giveBack(): void {
    if (!streams.has(this.id)) return;
    this.close();
    idle.add(this);
  }

  ended(): void {
    streams.delete(this.id);
  }
}

function write(message: object): void {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function base64url(text: string): string {
  let bytes = "";
  for (const b of new TextEncoder().encode(text)) bytes += String.fromCharCode(b);
  return btoa(bytes).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/** connect opens the connection unless there is one. A page without streams has it for its state, and to learn that its token ended. */
export function connect(): void {
  if (socket || retry || !session.value) return;
  const url = new URL("./ws", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  const used = token();
  const opened = new WebSocket(url, ["coracle.console.v1", "coracle.token." + base64url(used)]);
  let wasOpen = false;
  socket = opened;
  opened.onopen = () => {
    wasOpen = true;
    backoff = BACKOFF_MIN;
    if (connected.value === "lost") void checkPages();
    setConnected("open");
    if (used !== token()) write({ op: "token", data: token() });
    for (const s of [...streams.values()]) s.start();
  };
  opened.onmessage = (e) => {
    const m = JSON.parse(e.data as string) as Message & { id: number };
    observe(m);
    const s = streams.get(m.id);
    if (!s) return;
    if (m.type === "end") s.ended();
    s.client.message(m);
  };
  opened.onclose = (e) => {
    if (socket !== opened) return;
    socket = null;
    if (!session.value) return;
    setConnected("lost");
    // A WebSocket does not say why it was refused: an ordinary request finds out whether the token is still valid.
    if (!wasOpen || e.code === REFUSED) request("GET", "/session").catch(() => undefined);
    retry = setTimeout(
      () => {
        retry = undefined;
        if (streams.size > 0 || !document.hidden) connect();
      },
      backoff * (0.75 + Math.random() / 2),
    );
    backoff = Math.min(backoff * 2, BACKOFF_MAX);
  };
}

/** disconnect ends everything, at logout. */
export function disconnect(): void {
  clearTimeout(retry);
  retry = undefined;
  streams.clear();
  idle.clear();
  const old = socket;
  socket = null;
  old?.close();
  connected.value = "starting";
  since.value = 0;
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (document.hidden) {
    hiddenTimer = setTimeout(() => {
      givenBack = true;
      for (const s of [...streams.values()]) if (s.client.watch) s.giveBack();
    }, HIDDEN_AFTER);
    return;
  }
  givenBack = false;
  connect();
  for (const s of [...idle]) {
    idle.delete(s);
    s.start();
  }
});

// Streams go on with a renewed token of the same user.
renewed.subscribe((fresh) => {
  if (fresh) write({ op: "token", data: fresh });
});
