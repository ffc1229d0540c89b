// SPDX-License-Identifier: Apache-2.0

// The dialogs of actions that few need: one part of the pages, which is loaded when the first of them is opened.

export { debug } from "./debug";
export { deleteObjects } from "./deleting";
export { drain } from "./drain";
export { removeFinalizer } from "./finalizer";
export { forward, showForwards } from "./forwardview";
export { followRestarts } from "./progress";
export { undo } from "./rollout";
export { scale } from "./scaling";
