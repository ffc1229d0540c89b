// SPDX-License-Identifier: Apache-2.0

// Requests to the console's handler, with the user's token, and their errors.

import { expire, refusedToken, token } from "./session";
import { S } from "../base/strings";

/** ApiError is a refusal by the handler or by the Kubernetes API. */
export class ApiError extends Error {
  constructor(
    readonly code: number,
    readonly reason: string,
    message: string,
    readonly body: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

/**
 * send makes one request relative to the page. A body that is text is sent as it is, anything else as JSON. A request
 * whose token was not taken is made once more with a renewed one, if there is one: it has changed nothing.
 */
export async function send<T>(
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
  again = true,
): Promise<T> {
  const used = token();
  const all: Record<string, string> = { Authorization: "Bearer " + used, Accept: "application/json", ...headers };
  if (body !== undefined && !all["Content-Type"]) all["Content-Type"] = "application/json";
  let answer: Response;
  try {
    answer = await fetch("." + path, {
      method,
      headers: all,
      body: body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, "Unreachable", S.unreachable);
  }
  const text = await answer.text();
  let value: Record<string, unknown> = {};
  try {
    value = JSON.parse(text) as Record<string, unknown>;
  } catch {
    if (answer.ok) throw new ApiError(answer.status, "BadAnswer", S.badAnswer);
  }
  if (answer.ok) return value as T;
  const message = typeof value.message === "string" && value.message ? value.message : S.httpStatus(answer.status);
  // A late refusal of a token before is nothing to the session that there is now.
  if (answer.status === 401 && again && (await refusedToken(used, message))) return send(method, path, body, headers, false);
  if (answer.status === 401 && used === token()) expire(message);
  throw new ApiError(answer.status, String(value.reason ?? ""), message, value);
}

/** api makes one request to the Kubernetes API. */
export function api<T>(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<T> {
  return send<T>(method, "/k8s" + path, body, headers);
}

/** patch sends a merge patch, or another patch by its content type. */
export function patch<T>(path: string, body: unknown, type = "application/merge-patch+json"): Promise<T> {
  return api<T>("PATCH", path, body, { "Content-Type": type });
}

/** reasonOf is an error's text for a person. */
export function reasonOf(err: unknown): string {
  return err instanceof Error ? err.message : String(err);
}
