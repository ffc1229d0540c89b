// SPDX-License-Identifier: Apache-2.0

// Log lines that are JSON, as a person reads them: level and message first, then the other fields as name=value.

const LEVELS = ["level", "severity", "lvl"];
const MESSAGES = ["msg", "message"];
/** TIMES are left out: the log's own times are shown beside its lines. */
const TIMES = ["time", "ts", "timestamp", "@timestamp"];

/** readable writes a line that is a JSON object in words; other lines stay as they are. */
export function readable(line: string): string {
  if (!line.startsWith("{") || !line.endsWith("}")) return line;
  try {
    return inWords(JSON.parse(line) as Record<string, unknown>) || line;
  } catch {
    return line; // no JSON, or so deep that the browser cannot write it
  }
}

function inWords(fields: Record<string, unknown>): string {
  const first = (names: string[]) => names.find((n) => fields[n] !== undefined);
  const level = first(LEVELS);
  const message = first(MESSAGES);
  const out = [level && textOf(fields[level]).toUpperCase(), message && textOf(fields[message])].filter(Boolean) as string[];
  for (const [name, value] of Object.entries(fields)) {
    if (name !== level && name !== message && !TIMES.includes(name)) out.push(`${name}=${textOf(value)}`);
  }
  return out.join(" ");
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}
