// SPDX-License-Identifier: Apache-2.0

// The contexts of the kubeconfig. Each has an address of its own, so that another one is another page: nothing of one
// context is in the memory of another's.

import { announce } from "../base/announce";
import { reasonOf, send } from "../api/client";
import { choose } from "../widgets/dialog";
import { S } from "../base/strings";

export interface Contexts {
  current: string;
  /** address is one part of an address, which stands for the context. */
  contexts: { name: string; address: string }[];
}

/** openContext leaves this page for another context's. */
function openContext(all: Contexts, name: string): void {
  const found = all.contexts.find((c) => c.name === name);
  if (!found) announce(S.contexts.unknown(name), true);
  else if (name !== all.current) location.assign("../" + found.address + "/");
}

/** chooseContext asks for a context, or opens the one with a name. */
export async function chooseContext(name = ""): Promise<void> {
  try {
    const all = await send<Contexts>("GET", "/contexts");
    if (name) return openContext(all, name);
    choose({
      title: S.contexts.title,
      items: all.contexts.map((c) => c.name),
      current: all.current,
      pick: (item) => openContext(all, item),
    });
  } catch (err) {
    announce(reasonOf(err), true);
  }
}
