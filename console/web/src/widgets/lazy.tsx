// SPDX-License-Identifier: Apache-2.0

// Views whose code is loaded when they are opened.

import { signal } from "@preact/signals";
import type { FunctionComponent } from "preact";
import { checkPages } from "../api/session";
import { S } from "../base/strings";

/** lazy loads a view when it is first shown. A quiet one shows nothing until then, nor when it cannot be loaded. */
export function lazy<P extends object = object>(load: () => Promise<FunctionComponent<P>>, quiet = false): FunctionComponent<P> {
  const found = signal<FunctionComponent<P> | null>(null);
  const failed = signal(false);
  let loading = false;
  const start = () => {
    if (loading) return;
    loading = true;
    failed.value = false;
    load().then(
      (c) => (found.value = c),
      () => {
        loading = false;
        failed.value = true;
        void checkPages();
      },
    );
  };
  return function Lazy(properties: P) {
    const Found = found.value;
    if (Found) return <Found {...properties} />;
    if (failed.value && quiet) return null;
    if (failed.value) {
      return (
        <div class="problem" role="alert">
          <p>{S.notLoaded}</p>
          <button type="button" onClick={start}>
            {S.retry}
          </button>
        </div>
      );
    }
    start();
    return quiet ? null : <p class="empty">{S.loading}</p>;
  };
}
