import { Connection } from "./connection.js";
import type { MegaphoneError } from "./errors.js";
import type { Http } from "./http.js";
import type { Many } from "./many.js";
import type { Read } from "./read.js";

export const randomId = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** Call a function when the page, or the network, comes back. Returns: a function that ends this. */
export function onWake(wake: () => void): () => void {
  const abort = new AbortController();
  for (const type of ["online", "pageshow", "visibilitychange"]) globalThis.addEventListener?.(type, wake, { signal: abort.signal });
  return () => abort.abort();
}

/** Read one channel over a connection, until the answer ends in order. Throws a MegaphoneError. */
export function readOne(connection: Connection, http: Http, read: Read, name: string, begun: () => void): Promise<void> {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(read.ask(name, http.polls)))
    for (const one of [value].flat()) if (one !== undefined) query.append(key, one);
  return connection.run(http, `/read/${encodeURIComponent(read.consumer)}?${query}`, {}, read.heartbeatMs, {
    opened(headers) {
      const recovered = headers.get("Megaphone-Recovered");
      read.opened(recovered && JSON.parse(recovered), headers.get("Megaphone-Position"));
      begun();
    },
    take(lines) {
      read.alive();
      read.take(lines);
    },
  });
}

/** Where the events of a read come from. */
export interface Source {
  begin(): void;
  end(): void;
}

/** Reads a channel over connections of its own, one after the other. */
class Single implements Source {
  /** Is kept once the first request has been answered, or has failed. */
  settled: Promise<void> | undefined;
  #settle!: () => void;
  #connection: Connection | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #unlisten: (() => void) | undefined;

  constructor(readonly http: Http, readonly read: Read, readonly name: string) {}

  begin(): void {
    if (this.settled) return;
    this.settled = new Promise((resolve) => (this.#settle = resolve));
    this.#unlisten = onWake(() => (this.#connection ? this.#connection.wake(this.read.heartbeatMs) : this.#plan(0)));
    void this.#connect();
  }

  end(): void {
    this.#unlisten?.();
    clearTimeout(this.#timer);
    this.#connection?.cut();
    this.#connection = undefined;
  }

  #plan(waitMs: number | undefined): void {
    clearTimeout(this.#timer);
    if (waitMs !== undefined) this.#timer = setTimeout(() => this.#connect(), waitMs);
  }

  async #connect(): Promise<void> {
    const { http, read } = this;
    const connection = (this.#connection = new Connection());
    let waitMs: number | undefined = 0;
    try {
      await readOne(connection, http, read, this.name, this.#settle);
      waitMs = read.ended();
    } catch (error) {
      if (connection.isCut) read.cut();
      else waitMs = read.failed(error as MegaphoneError);
    }
    this.#settle();
    if (this.#connection !== connection) return;
    this.#connection = undefined;
    this.#plan(waitMs);
  }
}

/** The reads of a client. One has a connection of its own; as soon as there are more, they share some. */
export class Reads {
  readonly #http: Http;
  readonly #name = randomId();
  readonly #singles = new Map<Read, Single>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #many: Many | undefined;
  #isLoading = false;

  constructor(http: Http) {
    this.#http = http;
  }

  /** Read a channel until it ends for good, or is removed. */
  add(read: Read): void {
    if (this.#many) return this.#many.add(read);
    this.#singles.set(read, new Single(this.#http, read, this.#name));
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#start());
  }

  remove(read: Read): void {
    this.#many?.remove(read);
    this.#singles.get(read)?.end();
    this.#singles.delete(read);
  }

  #start(): void {
    if (this.#singles.size > 1) void this.#share();
    else for (const one of this.#singles.values()) one.begin();
  }

  async #share(): Promise<void> {
    if (this.#isLoading) return;
    this.#isLoading = true;
    const singles = this.#singles;
    try {
      // A read that is cut before it has begun could not take over, and would be refused.
      const [{ Many }] = await Promise.all([import("./many.js"), ...[...singles.values()].map((one) => one.settled)]);
      this.#many = new Many(this.#http, this.#name);
      for (const [read, one] of singles) {
        one.end();
        this.#many.add(read);
      }
      singles.clear();
    } catch {
      // The code cannot be loaded now.
      for (const one of singles.values()) one.begin();
    }
    this.#isLoading = false;
  }
}
