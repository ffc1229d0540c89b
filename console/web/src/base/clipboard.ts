// SPDX-License-Identifier: Apache-2.0

// The clipboard of the browser.

import { announce } from "./announce";
import { S } from "./strings";

/** copy puts a text into the clipboard, and says whether it could. */
export async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    announce(S.copied);
  } catch {
    announce(S.notCopied, true);
  }
}
