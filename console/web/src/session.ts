// SPDX-License-Identifier: Apache-2.0

// The user's session: the token, who it stands for, and how to get one. The token is in sessionStorage only, so it
// lives as long as the tab and no other site or tab can read it.

import { signal } from "@preact/signals";
import { S } from "./strings";

export interface Session {
  mode: "loopback" | "server";
  user: string;
  groups: string[] | null;
  cluster: string;
  context: string;
  namespace: string;
  server: string;
  version: string;
  readOnly: boolean;
}

const TOKEN = "coracle.token";

/** mode is how this console is served, as far as it is known. */
export const mode = signal<{ mode: "loopback" | "server"; version: string } | null>(null);

/** session is null until the server has accepted the token. */
export const session = signal<Session | null>(null);

/** refused is why there is no session: text for the login page. */
export const refused = signal("");

/** starting is true until the first answer about the session. */
export const starting = signal(true);

export function token(): string {
  return sessionStorage.getItem(TOKEN) ?? "";
}

/** start takes a code out of the fragment, and opens the session that the tab already has, if any. */
export async function start(): Promise<void> {
  const code = /^#code=([^&]+)$/.exec(location.hash)?.[1];
  if (code) history.replaceState(null, "", location.pathname + location.search + "#/");
  try {
    const answer = await fetch("./mode");
    if (answer.ok) mode.value = await answer.json();
    if (code) await loginWithCode(decodeURIComponent(code));
    else if (token()) await open();
  } catch {
    refused.value = S.login.unreachable;
  }
  starting.value = false;
}

async function loginWithCode(code: string): Promise<void> {
  const answer = await fetch("./login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ code }),
  });
  const body = (await answer.json().catch(() => ({}))) as { token?: string; message?: string };
  if (!answer.ok || !body.token) {
    // A page that is loaded again with a used code may still have a good token.
    if (token()) return open();
    refused.value = body.message || S.login.badCode;
    return;
  }
  await login(body.token);
}

/** login tries a token and keeps it when the server accepts it. */
export async function login(text: string): Promise<void> {
  sessionStorage.setItem(TOKEN, text.trim());
  await open();
}

async function open(): Promise<void> {
  const answer = await fetch("./session", { headers: { Authorization: "Bearer " + token() } });
  const body = (await answer.json().catch(() => ({}))) as Session & { message?: string };
  if (answer.status === 401) return expire(body.message);
  if (!answer.ok) {
    refused.value = body.message || S.login.failed(answer.status);
    return;
  }
  refused.value = "";
  session.value = body;
}

/** expire forgets the token; the login page is shown with the message. */
export function expire(message?: string): void {
  sessionStorage.removeItem(TOKEN);
  refused.value = message || S.login.expired;
  session.value = null;
}

export function logout(): void {
  sessionStorage.removeItem(TOKEN);
  refused.value = "";
  session.value = null;
}
