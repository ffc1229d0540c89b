// SPDX-License-Identifier: Apache-2.0

// Short messages: shown for some seconds, and read out by screen readers.

import { signal } from "@preact/signals";

export interface Announcement {
  id: number;
  text: string;
  bad: boolean;
}

export const announcements = signal<Announcement[]>([]);
let next = 1;

export function announce(text: string, bad = false): void {
  const a = { id: next++, text, bad };
  announcements.value = [...announcements.value.slice(-3), a];
  setTimeout(() => dismiss(a.id), bad ? 15_000 : 6_000);
}

export function dismiss(id: number): void {
  announcements.value = announcements.value.filter((a) => a.id !== id);
}
