// SPDX-License-Identifier: Apache-2.0

// Views that are loaded together, with the first of them: each more part would cost the first page some bytes.

export { HelmView } from "./helmview";
export { MapView } from "./mapview";
export { SearchView } from "./searchview";
export { Sections } from "./sections";
export { Waiting } from "./waiting";
