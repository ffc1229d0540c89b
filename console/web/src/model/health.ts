// SPDX-License-Identifier: Apache-2.0

// The check of conditions, once a minute while the overview is open and its tab is not hidden.

import { signal } from "@preact/signals";
import { reasonOf } from "../api/client";
import { checkHealth, type Finding } from "../api/health";
import { type Kind, kinds, listPath, plainPath, refreshKinds } from "../api/kinds";
import { CHECKED, isCustom, MOST, Rounds } from "./rounds";
import { O } from "../base/overviewstrings";

/** PERIOD is the time between two checks, in milliseconds, and STALE the age from which a check says nothing of now. */
const PERIOD = 60_000;
export const STALE = 200_000;

export interface Health {
  /** at is when the newest check ended, in milliseconds; 0 before the first. */
  at: number;
  findings: Finding[];
  byPath: Map<string, Kind>;
  /** notices say what was not checked. The page is not green while there are any. */
  notices: string[];
  /** blind is true when the user may not see all kinds. */
  blind: boolean;
}

const FIRST: Health = { at: 0, findings: [], byPath: new Map(), notices: [], blind: false };

/** HealthCheck checks until it is closed. */
export class HealthCheck {
  readonly state = signal<Health>(FIRST);
  private rounds = new Rounds();
  private timer: ReturnType<typeof setTimeout> | undefined;
  private closed = false;
  private reading = false;
  private readonly shown = () => void this.round();

  constructor(readonly ns: string) {
    document.addEventListener("visibilitychange", this.shown);
    void this.round();
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.shown);
  }

  private async round(): Promise<void> {
    if (this.closed || this.reading || document.hidden) return;
    const wait = this.state.value.at + PERIOD - Date.now();
    clearTimeout(this.timer);
    if (wait > 0) {
      this.timer = setTimeout(this.shown, wait);
      return;
    }
    this.reading = true;
    try {
      await this.read();
    } catch (err) {
      if (!this.closed) this.state.value = { ...this.state.value, notices: [O.checkFailed(reasonOf(err))] };
    }
    this.reading = false;
    if (!this.closed) this.timer = setTimeout(this.shown, PERIOD);
  }

  private async read(): Promise<void> {
    refreshKinds();
    const byPath = new Map<string, Kind>();
    const fixed: string[] = [];
    const custom: string[] = [];
    for (const k of kinds.value) {
      if (!k.verbs.includes("list")) continue;
      const path = plainPath(listPath(k, this.ns));
      const name = k.resource + "." + k.group;
      const gateway = k.group === "gateway.networking.k8s.io";
      // The overview follows the list of charts. A CronJob is judged by its jobs.
      if (CHECKED.has(name) || gateway) fixed.push(path);
      else if (isCustom(k.group) && k.resource !== "helmcharts") custom.push(path);
      else if (name !== "cronjobs.batch") continue;
      byPath.set(path, k);
    }
    const taken = this.rounds.plan(custom, Date.now());
    const answer = await checkHealth([...fixed, ...taken]);
    if (this.closed) return;
    const notices: string[] = [];
    let blind = false;
    for (const k of answer.kinds) {
      if (k.code === 403) blind = true;
      else if (k.error && k.code !== 404 && k.code !== 405) notices.push(k.error);
      if (k.more) notices.push(O.cut(byPath.get(k.path)?.resource ?? k.path, k.objects));
    }
    this.rounds.took(
      answer.kinds.filter((k) => custom.includes(k.path)),
      Date.now(),
    );
    const left = this.rounds.left(custom, taken).map((path) => byPath.get(path)?.resource ?? path);
    if (left.length) notices.push(O.cutKinds(MOST, left.slice(0, 10).join(", ") + (left.length > 10 ? "…" : "")));
    const unread = this.rounds.unread(custom);
    if (unread) notices.push(O.unread(unread));
    if (answer.full) notices.push(O.full);
    this.state.value = { at: Date.now(), findings: answer.findings, byPath, notices, blind };
  }
}
