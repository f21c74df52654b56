import { MegaphoneError, connectionFailed } from "./errors.js";

export interface Options {
  /** Go with every call; a function is asked for them before each. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** Stands in for the global `fetch`. */
  fetch?: typeof fetch;
  /** After 2.5 times as long without a byte, a read connects again. 10,000 by default. */
  heartbeatMs?: number;
  /** How long a call may take with all its tries: 30,000 by default, 55,000 at most. */
  timeoutMs?: number;
  /**
   * Read by long polls, where `fetch` gives no answer before its end. By default, if there are no
   * streams in answers, as in React Native.
   */
  polls?: boolean;
}

export interface Request extends RequestInit {
  /** Go with it, unless the app has given others. Their names are in lower case. */
  headers?: Record<string, string>;
}

/** The way to one broker. */
export interface Http {
  readonly options: Options;
  /** Whether reads are long polls. */
  polls: boolean;
  /** Return an answer whose body is still to come. Throws the error of the broker. */
  open(path: string, request: Request): Promise<Response>;
}

export function newHttp(url: string, options: Options): Http {
  const { username, password, origin, pathname } = new URL(url, globalThis.location?.href);
  const base = origin + pathname.replace(/\/+$/, "");
  return {
    options,
    polls: options.polls ?? !("body" in Response.prototype),
    async open(path, request) {
      const { headers: given, fetch: fetching = fetch } = options;
      const headers = {
        ...(username && { authorization: "Basic " + btoa(decodeURIComponent(username + ":" + password)) }),
        ...request.headers,
        ...Object.fromEntries(new Headers(typeof given === "function" ? await given() : given)),
      };
      const response = await fetching(base + path, { ...request, headers, cache: "no-store", redirect: "manual" }).catch((cause) => {
        throw connectionFailed(cause);
      });
      const { ok, status, statusText, headers: answered } = response;
      if (ok) return response;
      const { code = "HTTP_" + status, message = statusText } = await response.json().catch((cause) => {
        if (answered.get("content-type")?.includes("json")) throw connectionFailed(cause); // in the middle of an error of the broker
        return 0;
      });
      throw new MegaphoneError(code, message, status, +answered.get("Retry-After")! || 0);
    },
  };
}
