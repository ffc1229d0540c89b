// SPDX-License-Identifier: Apache-2.0

// xterm.js under a content security policy without inline styles. It writes <style> elements, which the policy refuses;
// while it opens, it gets inert elements in their place, whose text becomes a style sheet that was made by a script.

import { FitAddon } from "@xterm/addon-fit";
import { type ITheme, Terminal } from "@xterm/xterm";
import { isDark } from "../base/theme";

export interface Screen {
  terminal: Terminal;
  fit(): void;
  setTheme(): void;
  dispose(): void;
}

const LIGHT: ITheme = {
  background: "#ffffff",
  foreground: "#1b2228",
  cursor: "#1b2228",
  cursorAccent: "#ffffff",
  selectionBackground: "#b9d8f2",
  black: "#1b2228",
  red: "#b3261e",
  green: "#1a6f37",
  yellow: "#8a5300",
  blue: "#0b61a4",
  magenta: "#8b2f8f",
  cyan: "#006d77",
  white: "#5b6670",
  brightBlack: "#5b6670",
  brightRed: "#b3261e",
  brightGreen: "#1a6f37",
  brightYellow: "#8a5300",
  brightBlue: "#0b61a4",
  brightMagenta: "#8b2f8f",
  brightCyan: "#006d77",
  brightWhite: "#1b2228",
};
const DARK: ITheme = {
  background: "#14181d",
  foreground: "#e3e8ed",
  cursor: "#e3e8ed",
  cursorAccent: "#14181d",
  selectionBackground: "#2f5474",
  black: "#313a44",
  red: "#ff8a80",
  green: "#6fcf8f",
  yellow: "#e5b25d",
  blue: "#6cb6f2",
  magenta: "#d99be0",
  cyan: "#63cfd8",
  white: "#e3e8ed",
  brightBlack: "#97a3ae",
  brightRed: "#ff8a80",
  brightGreen: "#6fcf8f",
  brightYellow: "#e5b25d",
  brightBlue: "#6cb6f2",
  brightMagenta: "#d99be0",
  brightCyan: "#63cfd8",
  brightWhite: "#ffffff",
};

/** withAdoptedStyles runs open; <style> elements that it makes feed adopted style sheets instead, which are returned. */
function withAdoptedStyles(open: () => void): CSSStyleSheet[] {
  const sheets: CSSStyleSheet[] = [];
  const create = document.createElement;
  document.createElement = function (this: Document, name: string, options?: ElementCreationOptions) {
    if (name !== "style") return create.call(this, name, options);
    const element = create.call(this, "template");
    const sheet = new CSSStyleSheet();
    sheets.push(sheet);
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
    let text = "";
    Object.defineProperty(element, "textContent", {
      get: () => text,
      set: (value: string) => {
        text = value;
        sheet.replaceSync(value);
      },
    });
    return element;
  } as typeof document.createElement;
  try {
    open();
  } finally {
    document.createElement = create;
  }
  return sheets;
}

export function openScreen(parent: HTMLElement): Screen {
  const terminal = new Terminal({
    fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
    fontSize: 13,
    scrollback: 10_000,
    cursorBlink: true,
    screenReaderMode: true,
    // Text of a pod opens no pages: links in it are only text.
    linkHandler: { activate: () => undefined },
    theme: isDark() ? DARK : LIGHT,
  });
  const fitter = new FitAddon();
  terminal.loadAddon(fitter);
  const sheets = withAdoptedStyles(() => terminal.open(parent));
  return {
    terminal,
    fit: () => fitter.fit(),
    setTheme: () => (terminal.options.theme = isDark() ? DARK : LIGHT),
    dispose() {
      terminal.dispose();
      document.adoptedStyleSheets = document.adoptedStyleSheets.filter((s) => !sheets.includes(s));
    },
  };
}
