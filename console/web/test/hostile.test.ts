// SPDX-License-Identifier: Apache-2.0

// Texts that somebody wrote to hold up the page of who reads them: each would take minutes, or end in an error.

import assert from "node:assert/strict";
import test from "node:test";
import { readable } from "../src/base/logjson";
import { levelOf } from "../src/base/loglevel";
import { podReason } from "../src/model/podreason";
import { cannotMake, clean, probeReason } from "../src/model/sentences";

const MANY = 1_000_000;

test("a log line of JSON that is too deep to be written is shown as it is", () => {
  const deep = '{"msg":"x","a":' + "[".repeat(30_000) + "]".repeat(30_000) + "}";
  assert.equal(readable(deep), deep);
  assert.equal(levelOf(deep), 2);
});

test("texts of the cluster are read in a time that grows as they do", () => {
  for (const text of [
    "pod=" + "_".repeat(MANY),
    " ".repeat(MANY) + "x",
    'Get "http://' + ":1".repeat(MANY),
    "exceeded quota: ".repeat(MANY / 16),
  ]) {
    assert(clean(text).length <= 2000);
    assert(probeReason(text).length <= 2000);
    assert(cannotMake(text).length <= 2100);
  }
  const message = " container=a pod=" + "(".repeat(MANY) + "x ";
  const waiting = { name: "web", state: { waiting: { reason: "CrashLoopBackOff", message } } };
  const pod = { spec: { nodeName: "n" }, status: { phase: "Running", containerStatuses: [waiting] } };
  assert(podReason(pod, "web").length > MANY);
});
