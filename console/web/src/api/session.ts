// SPDX-License-Identifier: Apache-2.0

// The user's session: the token, who it stands for, and how to get one. The token is in sessionStorage only, so it
// lives as long as the tab and no other site or tab can read it.

import { signal } from "@preact/signals";
import { byProvider, comeBack, forget, keepRenewing, leave, type Outcome, renew } from "./oidc";
import { S } from "../base/strings";

export interface Session {
  mode: "loopback" | "server";
  user: string;
  groups: string[] | null;
  cluster: string;
  context: string;
  /** contexts is how many the kubeconfig has. */
  contexts: number;
  namespace: string;
  server: string;
  version: string;
  readOnly: boolean;
}

const TOKEN = "coracle.token";

/** mode is how this console is served, as far as it is known. */
export const mode = signal<Mode | null>(null);

export interface Mode {
  mode: "loopback" | "server";
  version: string;
  /** pages names the content of all files: another version's is another one. */
  pages: string;
  /** issuer is who logs users in by OIDC. */
  issuer?: string;
}

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
    if (mode.value?.issuer) keepRenewing(() => void (session.value && renewToken()));
    const outcome = mode.value?.issuer ? await comeBack() : null;
    if (outcome) await loginByProvider(outcome);
    else if (code) await loginWithCode(decodeURIComponent(code));
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

async function loginByProvider(outcome: Outcome): Promise<void> {
  if ("refused" in outcome) {
    refused.value = outcome.refused;
    return;
  }
  sessionStorage.setItem(TOKEN, outcome.token);
  await open();
  if (!session.value && !token()) refused.value = S.oidc.refusedByAPI(mode.value?.issuer ?? "") + " " + refused.value;
}

/** login tries a token and keeps it when the server accepts it. */
export async function login(text: string): Promise<void> {
  forget();
  sessionStorage.setItem(TOKEN, text.trim());
  await open();
}

async function open(again = true): Promise<void> {
  const answer = await fetch("./session", { headers: { Authorization: "Bearer " + token() } });
  const body = (await answer.json().catch(() => ({}))) as Session & { message?: string };
  if (answer.status === 401) return again && (await renewToken()) ? open(false) : expire(body.message);
  if (!answer.ok) {
    refused.value = body.message || S.login.failed(answer.status);
    return;
  }
  refused.value = "";
  session.value = body;
}

/**
 * refusedToken is called when the API did not take a token. It is renewed if it can be: true says that another one is
 * there now. Otherwise the session ends, with what the server says about the token.
 */
export async function refusedToken(used: string, message: string): Promise<boolean> {
  if (used !== token()) return used === former && token() !== "";
  if (await renewToken()) return true;
  if (used !== token()) return false;
  const answer = await fetch("./session", { headers: { Authorization: "Bearer " + used } }).catch(() => null);
  if (used !== token()) return false;
  if (answer?.status !== 401) expire(message);
  else expire(((await answer.json().catch(() => ({}))) as { message?: string }).message || message);
  return false;
}

/** renewed is the newest token of a renewal, and former the one that it replaced, of the same user. */
export const renewed = signal("");
let former = "";

/** renewToken gets a new token of the same user, and returns whether it did. */
async function renewToken(): Promise<boolean> {
  const before = token();
  const got = await renew();
  if (!got || before !== token()) return false;
  if ("refused" in got) {
    if (got.other) expire(got.refused);
    return false;
  }
  former = before;
  sessionStorage.setItem(TOKEN, got.token);
  renewed.value = got.token;
  return true;
}

/**
 * expire forgets the token; the login page is shown with the message. The token of a console on 127.0.0.1 is kept: it is
 * of all contexts, and one of them has refused its credentials.
 */
export function expire(message?: string): void {
  if (mode.value?.mode !== "loopback") sessionStorage.removeItem(TOKEN);
  former = "";
  forget();
  refused.value = message || S.login.expired;
  session.value = null;
}

export function logout(): void {
  const provided = byProvider();
  sessionStorage.removeItem(TOKEN);
  former = "";
  forget();
  refused.value = "";
  session.value = null;
  if (provided) void leave();
}

/** stale says that the server has pages of another version than this one. */
export const stale = signal(false);

/** checkPages asks which pages the server has. It is called when a connection was lost, or a part could not be loaded. */
export async function checkPages(): Promise<void> {
  const answer = await fetch("./mode").catch(() => null);
  const now = answer?.ok ? ((await answer.json().catch(() => null)) as Mode | null) : null;
  if (now?.pages && mode.value?.pages && now.pages !== mode.value.pages) stale.value = true;
}
