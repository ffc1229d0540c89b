// SPDX-License-Identifier: Apache-2.0

// Text from the cluster, made safe to read: control and bidirectional characters are shown as escapes.

// C0 and C1 controls, soft hyphen, zero-width and bidirectional characters, line separators, tags and the byte order mark.
const HIDDEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;
const HIDDEN_BUT_BREAKS =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

function escape(c: string): string {
  if (c === "\t") return "  ";
  if (c === "\n") return "⏎";
  return "\\u{" + (c.codePointAt(0) ?? 0).toString(16) + "}";
}

/** visible is text for one line. */
export function visible(value: unknown): string {
  const text = typeof value === "string" ? value : value === null || value === undefined ? "" : plain(value);
  HIDDEN.lastIndex = 0;
  return HIDDEN.test(text) ? text.replace(HIDDEN, escape) : text;
}

/** visibleLines keeps line breaks and tabs. */
export function visibleLines(text: string): string {
  return text.replace(HIDDEN_BUT_BREAKS, escape);
}

function plain(value: unknown): string {
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** clock is a time of this day, in milliseconds, in the reader's zone. */
export function clock(at: number): string {
  return new Date(at).toTimeString().slice(0, 8);
}

/** moment is a time in the reader's zone; the day is left out when it is now's. */
export function moment(time: string | undefined, now: number): string {
  const at = new Date(time ?? "");
  if (Number.isNaN(at.getTime())) return time ?? "";
  const day = (d: Date) => `${d.getFullYear()}-${String(d.getMonth() + 1).padStart(2, "0")}-${String(d.getDate()).padStart(2, "0")}`;
  return (day(at) === day(new Date(now)) ? "" : day(at) + " ") + clock(at.getTime());
}

/** when is a time and how long ago that was. */
export function when(time: string | undefined, now: number): string {
  const old = age(time ?? "", now);
  return old ? `${moment(time, now)} (${old} ago)` : moment(time, now);
}

/** ahead is a time and how long it is until then; a text that is no time stays as it is. */
export function ahead(time: string, now: number): string {
  const s = Math.ceil((Date.parse(time) - now) / 1000);
  return s > 0 ? `${moment(time, now)} (in ${duration(s)})` : moment(time, now);
}

/** age is a duration as kubectl writes it. */
export function age(created: string, now: number): string {
  const s = Math.max(0, Math.floor((now - Date.parse(created)) / 1000));
  if (Number.isNaN(s)) return "";
  return duration(s);
}

export function duration(s: number): string {
  if (s < 120) return s + "s";
  const m = Math.floor(s / 60);
  if (m < 10) return m + "m" + (s % 60 ? (s % 60) + "s" : "");
  if (m < 180) return m + "m";
  const h = Math.floor(m / 60);
  if (h < 8) return h + "h" + (m % 60 ? (m % 60) + "m" : "");
  if (h < 48) return h + "h";
  const d = Math.floor(h / 24);
  if (d < 8) return d + "d" + (h % 24 ? (h % 24) + "h" : "");
  if (d < 730) return d + "d";
  const y = Math.floor(d / 365);
  return y + "y" + (d % 365 ? (d % 365) + "d" : "");
}

/** seconds reads a duration as kubectl writes it; NaN for other text. */
export function seconds(text: string): number {
  const parts = text.match(/^(?:\d+[ydhms])+/);
  if (!parts) return NaN;
  const unit: Record<string, number> = { y: 31_536_000, d: 86_400, h: 3600, m: 60, s: 1 };
  let sum = 0;
  for (const [, n, u] of parts[0].matchAll(/(\d+)([ydhms])/g)) sum += Number(n) * unit[u];
  return sum;
}

export function bytes(n: number): string {
  return n < 1024 ? n + " B" : n < 1024 * 1024 ? (n / 1024).toFixed(1) + " KiB" : (n / 1024 / 1024).toFixed(1) + " MiB";
}
