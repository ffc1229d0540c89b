// SPDX-License-Identifier: Apache-2.0

// Objects that the user has deleted: when they have gone, their pages lead back, and do not say that nothing is found.

const expected = new Map<string, string>();

/** expectGone says that the user has deleted the object with a uid at a path; without a uid, whatever is there. */
export function expectGone(path: string, uid = ""): void {
  expected.set(path, uid);
}

/** wasExpected is whether the user has deleted the object that has gone, and forgets it. The uid is empty where it is not known. */
export function wasExpected(path: string, uid = ""): boolean {
  const want = expected.get(path);
  if (want === undefined || (want && uid && want !== uid)) return false;
  expected.delete(path);
  return true;
}
