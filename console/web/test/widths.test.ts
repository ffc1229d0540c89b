// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { tracksOf } from "../src/model/widths";

function tracks(texts: Record<string, number>, linked = "Name"): { tracks: string; least: number } {
  return tracksOf(
    Object.entries(texts).map(([name, text]) => ({ name, text })),
    linked,
  );
}

test("the message of an event gets the room, the object is the link", () => {
  const t = tracks({ "Last Seen": 10, Type: 8, Reason: 20, Object: 45, Message: 160 }, "Object");
  assert.equal(t.tracks, "minmax(10ch, 10ch) minmax(8ch, 8ch) minmax(20ch, 20fr) minmax(24ch, 45fr) minmax(40ch, 160fr)");
});

test("the reason of a chart is within a window of 1,280 pixels", () => {
  // 112 characters of 8 pixels, nine gaps of 12 and the menu of 168 are less.
  const t = tracks({
    Namespace: 13,
    Name: 16,
    Repo: 45,
    Chart: 14,
    Version: 9,
    TargetNamespace: 17,
    Bootstrap: 11,
    Failed: 8,
    Ready: 7,
    Reason: 16,
  });
  assert(t.least <= 116, String(t.least));
});
