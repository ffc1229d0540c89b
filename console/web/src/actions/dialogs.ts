// SPDX-License-Identifier: Apache-2.0

// The dialogs that few need, loaded when the first of them is opened.

import { announce } from "../base/announce";
import { reasonOf } from "../api/client";
import { S } from "../base/strings";

type Dialogs = typeof import("./actiondialogs");

/** openDialog loads the dialogs, and opens one. It announces why one cannot be opened. */
export function openDialog(open: (dialogs: Dialogs) => unknown): void {
  import("./actiondialogs").then(
    async (dialogs) => {
      try {
        await open(dialogs);
      } catch (err) {
        announce(reasonOf(err), true);
      }
    },
    () => announce(S.notLoaded, true),
  );
}

/** openForwards shows the ports that are forwarded. */
export function openForwards(): void {
  openDialog((d) => d.showForwards());
}
