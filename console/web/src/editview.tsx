// SPDX-License-Identifier: Apache-2.0
export function EditView() {
  return <p>Edit</p>;
}
