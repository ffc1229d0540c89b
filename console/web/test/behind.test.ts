// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { behind } from "../src/model/behind";
import { moment, when } from "../src/base/text";

const service = { spec: { selector: { app: "web" } } };

test("a Service says what is behind it, and why nothing is", () => {
  const of = (...ready: boolean[]) => [{ endpoints: ready.map((r) => ({ conditions: { ready: r } })) }];
  for (const [s, slices, want] of [
    [service, of(true, true), "good: 2 endpoints are ready."],
    [service, of(true, false), "passing: 1 of 2 endpoints are ready."],
    [service, of(false), "bad: Nothing is behind this Service: its one pod is not ready."],
    [service, of(false, false), "bad: Nothing is behind this Service: none of its 2 pods is ready."],
    [service, [], "bad: Nothing is behind this Service: no running pod has app=web."],
    [{ spec: {} }, [], "bad: Nothing is behind this Service: it has no selector, and nobody has made endpoints for it."],
    [service, [{ endpoints: [{ addresses: ["10.0.0.1"] }] }], "good: 1 endpoint is ready."],
  ] as const) {
    const got = behind(s, slices as any);
    assert.equal(`${got?.tone}: ${got?.text}`, want);
  }
  assert.equal(behind({ spec: { type: "ExternalName" } }, []), null);
});

test("times are in the reader's zone, with the day where it is another", () => {
  const now = Date.parse("2026-11-30T12:00:00Z");
  assert.equal(moment("2026-11-30T11:54:53Z", now), "11:54:53");
  assert.equal(when("2026-11-29T11:54:53.5Z", now), "2026-11-29 11:54:53 (24h ago)");
  assert.equal(when(undefined, now), "");
  assert.equal(when("soon", now), "soon");
});
