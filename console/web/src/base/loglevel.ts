// SPDX-License-Identifier: Apache-2.0

// The level of a log line: from JSON, from logfmt, from klog's header, or from a word at its beginning.

/** Levels, the worst first. A line that says nothing of its level counts as information. */
export const ERROR = 0;
export const WARNING = 1;
export const INFO = 2;
export const DEBUG = 3;

/** WORDS are the beginnings of the levels' names, of many programs. */
const WORDS: [RegExp, number][] = [
  [/^(err|fatal|crit|panic|alert|emerg|severe|fail|exception|f$|e$)/i, ERROR],
  [/^(warn|w$)/i, WARNING],
  [/^(info|notice|log$|hint|detail|i$|n$)/i, INFO],
  [/^(debug|dbug|trace|trce|fine|verb|d\d?$|t$)/i, DEBUG],
];

/** FIELDS are the names of a level's field in JSON: of zap, logrus, slog, pino, GCP, ECS, python, Serilog, MongoDB. */
const FIELDS = ["level", "severity", "lvl", "log.level", "levelname", "loglevel", "@l", "s"];

const COLORS = /\u001b\[[0-9;]*m/g;
const KLOG = /^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ /;
const LOGFMT = /(?:^|[\s{,])(?:level|lvl|severity)="?([A-Za-z]+)/;
/** REDIS ends its head with a sign: . - * # */
const REDIS = /^\d+:[XCSM] \d\d \w{3} [\d: .]+ ([.*#-]) /;
/** HEAD is how many characters of a line are looked at for a word. */
const HEAD = 120;
/** CAPITALS are levels in capitals, alone or in brackets; QUIET those in small letters, which are ordinary words elsewhere. */
const CAPITALS =
  /(?:^|[\s[(|<,:-])(TRACE|DEBUG|FINE|INFO|NOTICE|LOG|HINT|DETAIL|WARN|WARNING|ERROR|ERR|SEVERE|CRIT|CRITICAL|FATAL|PANIC|ALERT|EMERG)(?=[\s\]):|>,/]|$)/;
const BRACKETS = /[[<](trace|debug|info|notice|warn|warning|error|err|crit|critical|fatal|panic|alert|emerg)[\]>]/i;
const QUIET =
  /^(?:[\d:.,/TZ+-]+\s+)*(trace|trce|debug|dbug|info|notice|warn|warning|error|err|fail|crit|critical|fatal|panic)(?:\(\w+\))?(?::|\s{2,}|\t)/i;
/** THROWN is how exceptions begin, of Java and Python, and Go's panics. */
const THROWN =
  /^(?:Exception in thread |Traceback \(most recent call last\)|fatal error: |(?:[a-z]\w*\.)*[A-Z]\w*(?:Error|Exception)(?::|$))/;

/** CONTINUES is how lines begin that belong to the one before: of stack traces and of broken texts. */
const CONTINUES = /^(?:[ \t]+\S|Caused by: |\.\.\. \d+ more|goroutine \d+ \[|[})\]])/;

/** continues says whether a line belongs to the one before. */
export function continues(line: string): boolean {
  return CONTINUES.test(line);
}

/** levelOf is a line's level; INFO when it says none. */
export function levelOf(raw: string): number {
  const line = raw.includes("\u001b") ? raw.replace(COLORS, "") : raw;
  if (line.startsWith("{")) return ofJSON(line) ?? ofText(line);
  return ofText(line);
}

function ofText(line: string): number {
  const klog = KLOG.exec(line);
  if (klog) return ofWord(klog[1]) ?? INFO;
  const field = LOGFMT.exec(line);
  const named = field && ofWord(field[1]);
  if (typeof named === "number") return named;
  const redis = REDIS.exec(line);
  if (redis) return redis[1] === "#" ? WARNING : redis[1] === "*" ? INFO : DEBUG;
  const head = line.slice(0, HEAD);
  const word = BRACKETS.exec(head) ?? CAPITALS.exec(head) ?? QUIET.exec(head);
  if (word) return ofWord(word[1]) ?? INFO;
  return THROWN.test(head) ? ERROR : INFO;
}

function ofWord(word: string): number | undefined {
  return WORDS.find(([begin]) => begin.test(word))?.[1];
}

function ofJSON(line: string): number | undefined {
  let fields: Record<string, unknown>;
  try {
    fields = JSON.parse(line) as Record<string, unknown>;
  } catch {
    return undefined;
  }
  for (const name of FIELDS) {
    const value = fields[name] ?? (name === "log.level" ? (fields.log as Record<string, unknown> | null)?.level : undefined);
    if (typeof value === "string") {
      const level = ofWord(value);
      if (level !== undefined) return level;
    }
    // Numbers are bunyan's and pino's: 50 is an error, 40 a warning.
    if (typeof value === "number" && value >= 10) return value >= 50 ? ERROR : value >= 40 ? WARNING : value >= 30 ? INFO : DEBUG;
  }
  return undefined;
}
