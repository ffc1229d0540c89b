// SPDX-License-Identifier: Apache-2.0

// The dialogs of actions that few need: one part of the pages, which is loaded when the first of them is opened.

export { debug } from "./debug";
export { drain } from "./drain";
export { forward, showForwards } from "./forwardview";
export { undo } from "./rollout";
