// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { type LogLine, LogLines, timeKey } from "../src/model/loglines";
import { type Cut, Pieces } from "../src/model/logpieces";

const source = { number: 1, pod: "p", container: "c", color: 0, job: "" };

function line(second: number, text: string): LogLine {
  const at = `2026-01-01T00:00:00.${String(second).padStart(9, "0")}Z`;
  return { key: timeKey(at), at, text, source, shown: undefined, words: undefined, head: null, level: -1 };
}

/** cutOf shows lines that have a text, and counts the looks at lines. */
function cutOf(filter: string, width = Infinity): Cut & { looks: number } {
  return {
    looks: 0,
    text(l) {
      this.looks++;
      return l.text;
    },
    keep: () => true,
    match: (text) => text.includes(filter),
    only: true,
    room: () => width,
    width,
  };
}

const texts = (p: readonly { line: LogLine; from: number; to: number }[]) => p.map((x) => x.line.text.slice(x.from, x.to));

test("lines that were there before are not looked at again", () => {
  const log = new LogLines(5_000);
  const pieces = new Pieces();
  const cut = cutOf("a");
  for (let i = 0; i < 6_000; i += 500) {
    log.add(Array.from({ length: 500 }, (_, n) => line(i + n, n % 100 ? "b" : "a" + (i + n))));
    pieces.update(log, cut);
  }
  log.add([line(6_000, "b")]);
  const shown = pieces.update(log, cut);
  assert.equal(cut.looks, 6_001);
  assert.equal(log.lines.length, 5_000);
  assert.equal(shown.pieces.length, 49);
  assert.equal(shown.gone, 11);
  assert.equal(texts(shown.pieces)[0], "a1100");
  assert.equal(pieces.update(log, cut), shown, "nothing has changed");
  log.add([line(6_001, "b")]);
  assert.equal(pieces.update(log, cut), shown, "a line that is not shown changes nothing");
  assert.equal(cut.looks, 6_002);
});

test("any order of lines and filters gives what a new look at all of them gives", () => {
  let seed = 7;
  const random = (n: number) => (seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648) % n;
  const log = new LogLines(1_000);
  const pieces = new Pieces();
  let cut = cutOf("");
  for (let round = 0; round < 300; round++) {
    log.add(Array.from({ length: random(50) }, () => line(round * 50 + random(200), "ab".repeat(random(30)) + " " + random(100))));
    if (random(10) === 0) cut = { ...cutOf(String(random(10)), random(2) ? Infinity : 20 + random(40)), only: random(2) === 0 };
    if (random(40) === 0) log.remove((l) => l.text.endsWith("7"));
    if (random(3) === 0) continue;
    const shown = pieces.update(log, cut);
    const keys = log.lines.map((l) => l.key);
    assert.deepEqual(keys, [...keys].sort());
    const anew = new Pieces().update(Object.assign(new LogLines(), log, { changed: 0 }), cut);
    assert.deepEqual(texts(shown.pieces), texts(anew.pieces));
    assert.deepEqual(texts(shown.hits), texts(anew.hits));
    for (const p of shown.pieces) assert.equal(log.lines[p.place - log.dropped], p.line);
  }
});

test("a line is broken after words where it can be", () => {
  const log = new LogLines();
  log.add([line(1, "the quick brown fox jumps over the lazy dog"), line(2, "x".repeat(30))]);
  assert.deepEqual(texts(new Pieces().update(log, cutOf("", 22)).pieces), [
    "the quick brown fox ",
    "jumps over the lazy ",
    "dog",
    "x".repeat(22),
    "x".repeat(8),
  ]);
});

test("lines of the same time stay as they came", () => {
  const log = new LogLines();
  log.add([line(1, "a"), line(3, "b"), line(5, "c")]);
  log.add([line(3, "d"), line(6, "e")]);
  assert.deepEqual(
    log.lines.map((l) => l.text),
    ["a", "b", "d", "c", "e"],
  );
});

test("matches are counted among all lines", () => {
  const log = new LogLines(10);
  const pieces = new Pieces();
  const cut: Cut = { ...cutOf("x"), only: false };
  log.add([line(1, "x1"), line(2, "y"), line(3, "x3")]);
  const shown = pieces.update(log, cut);
  assert.deepEqual(texts(shown.pieces), ["x1", "y", "x3"]);
  assert.deepEqual(texts(shown.hits), ["x1", "x3"]);
  log.add(Array.from({ length: 8 }, (_, i) => line(4 + i, i ? "y" : "x4")));
  assert.deepEqual(texts(pieces.update(log, cut).hits), ["x3", "x4"]);
});
