// SPDX-License-Identifier: Apache-2.0

// Dark and light: as the system has it, until the user chooses.

import { effect, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";

const KEY = "coracle.theme";
const ALL: Theme[] = ["auto", "light", "dark"];
const stored = localStorage.getItem(KEY) as Theme | null;

export const theme = signal<Theme>(stored && ALL.includes(stored) ? stored : "auto");

effect(() => {
  document.documentElement.dataset.theme = theme.value;
  localStorage.setItem(KEY, theme.value);
});

export function nextTheme(): void {
  theme.value = ALL[(ALL.indexOf(theme.value) + 1) % ALL.length];
}

const system = window.matchMedia("(prefers-color-scheme: dark)");

/** isDark says which of the two is shown. */
export function isDark(): boolean {
  return theme.value === "dark" || (theme.value === "auto" && system.matches);
}
