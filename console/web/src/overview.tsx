// SPDX-License-Identifier: Apache-2.0
import { S } from "./strings";
export function Overview() {
  return <p>{S.overview.title}</p>;
}
