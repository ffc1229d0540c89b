// SPDX-License-Identifier: Apache-2.0
export function ShellView() {
  return <p>Shell</p>;
}
