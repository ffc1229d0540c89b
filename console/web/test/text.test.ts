// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { plainText, spansOf } from "../src/base/ansi";
import { readable } from "../src/base/logjson";
import { quantity } from "../src/base/quantity";
import { age, ahead, duration, moment, seconds, visible, visibleLines } from "../src/base/text";

test("quantities", () => {
  for (const [text, value] of [
    ["1", 1],
    ["250m", 0.25],
    ["283234n", 283234e-9],
    ["528Ki", 528 * 1024],
    ["1.5Gi", 1.5 * 2 ** 30],
    ["1e3", 1000],
    ["-2k", -2000],
  ] as const)
    assert.equal(quantity(text), value, text);
  for (const text of ["", "x", "1Q", "1 Mi", undefined]) assert(Number.isNaN(quantity(text)), String(text));
});

test("durations are read as they are written", () => {
  for (const s of [0, 59, 119, 120, 599, 601, 3600, 10_800, 28_799, 86_400, 172_800, 700_000, 31_536_000, 63_072_000])
    assert(seconds(duration(s)) <= s && s - seconds(duration(s)) < Math.max(60, s / 2), `${s} is ${duration(s)}`);
  assert.equal(age("2026-01-01T00:00:00Z", Date.parse("2026-01-01T00:05:07Z")), "5m7s");
  assert(Number.isNaN(seconds("soon")));
});

test("characters that hide are shown", () => {
  assert.equal(visible("a\u202eb\u0007\n"), "a\\u{202e}b\\u{7}⏎");
  assert.equal(visibleLines("a\nb\tc\u200b"), "a\nb\tc\\u{200b}");
  assert.equal(visible({ a: 1 }), '{"a":1}');
});

test("colours of logs become classes, and nothing else is lost", () => {
  assert.deepEqual(spansOf("a\u001b[1;31mb\u001b[0mc"), [
    { text: "a", style: "" },
    { text: "b", style: "a1 bold" },
    { text: "c", style: "" },
  ]);
  assert.equal(plainText("\u001b[32mok\u001b[39m"), "ok");
  assert.deepEqual(spansOf("\u001b[2Jx"), [{ text: "\u001b[2Jx", style: "" }]);
});

test("lines of JSON are read as words", () => {
  assert.equal(readable('{"ts":1,"level":"info","msg":"started","port":8080}'), "INFO started port=8080");
  assert.equal(readable('{"broken"}'), '{"broken"}');
  assert.equal(readable("plain"), "plain");
});

test("a time to come says how long it is until then", () => {
  const now = Date.parse("2026-01-02T03:04:05Z");
  assert.match(ahead("2026-01-02T03:14:05Z", now), / \(in 10m\)$/);
  assert.equal(ahead("2026-01-02T03:04:05Z", now), moment("2026-01-02T03:04:05Z", now));
  assert.equal(ahead("asking the server failed", now), "asking the server failed");
});
