import { call } from "./calling.js";
import { MegaphoneError } from "./errors.js";
import type { Entry } from "./events.js";
import type { Http } from "./http.js";
import type { Read } from "./read.js";
import { now } from "./time.js";

const EVENTS = 50;
const AGE_MS = 1_000;
const LAST_MS = 1_000;

/**
 * What a read that acknowledges has brought and nobody has dealt with yet. What all have dealt with
 * is acknowledged: 50 events at a time, or after a second.
 */
export class Ledger {
  readonly #http: Http;
  readonly #read: Read;
  readonly #deals: boolean;
  /** In their order; the first one is not dealt with. */
  readonly #entries: Entry[] = [];
  /** What those were dealing with who have left. */
  readonly #left: Entry[] = [];
  readonly #closing = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #sending: Promise<unknown> | undefined;

  /** `deals` says whether asking for the next event deals with the last one. */
  constructor(http: Http, read: Read, deals: boolean) {
    this.#http = http;
    this.#read = read;
    this.#deals = deals;
  }

  add(entry: Entry): void {
    this.#entries.push(entry);
  }

  /** One of those who iterate has dealt with an entry. */
  deal(entry: Entry): void {
    if (!this.#deals) return;
    entry.left--;
    this.settle();
  }

  /** All have dealt with an event, and with all before it. */
  dealUpTo(id: string): void {
    const index = this.#entries.findIndex(({ event }) => event!.id === id);
    for (const entry of this.#entries.slice(0, index + 1)) entry.left = 0;
    this.settle();
  }

  /** Somebody has left while dealing with an entry. If others go on, it must not hold them back. */
  leave(entry: Entry, isLast: boolean): void {
    if (isLast) this.#left.push(entry);
    else this.deal(entry);
  }

  dealLeft(): void {
    for (const entry of this.#left.splice(0)) this.deal(entry);
  }

  /** Count as dealt with the first events that all have dealt with. */
  settle(): void {
    let count = this.#entries.findIndex(({ left }) => left > 0);
    if (count < 0) count = this.#entries.length;
    const last = this.#entries.splice(0, count).at(-1);
    if (!last) return;
    this.#read.dealt += count;
    this.#read.cursor = last.event!.id;
    this.#plan();
  }

  get #due(): number {
    return this.#read.dealt - this.#read.known;
  }

  /** Acknowledge what is due, soon. */
  #plan(): void {
    if (this.#sending || this.#closing.signal.aborted || !this.#due) return;
    const isFull = this.#due >= EVENTS;
    if (isFull) clearTimeout(this.#timer);
    else if (this.#timer) return;
    this.#timer = setTimeout(() => this.#send(), isFull ? 0 : AGE_MS);
  }

  /** Return when the broker knows all that was dealt with until now. */
  async reach(): Promise<void> {
    const until = now() + (this.#http.options.timeoutMs ?? 30_000);
    for (const { dealt } = this.#read; this.#read.known < dealt; ) {
      if (now() > until) throw new MegaphoneError("CONNECTION_FAILED", "no answer to an acknowledgement in time");
      const error = await this.#send(until - now());
      if (error && !mayHeal(error)) throw error;
    }
  }

  /** Acknowledge all that was dealt with, once more, for a second at most. */
  async close(): Promise<void> {
    const timer = setTimeout(() => this.#closing.abort(), LAST_MS);
    await this.#send();
    clearTimeout(timer);
    this.#closing.abort();
    clearTimeout(this.#timer);
  }

  /** Acknowledge once all that is dealt with. A failure is repeated later. Returns: the failure. */
  async #send(timeoutMs = this.#http.options.timeoutMs): Promise<unknown> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    await this.#sending;
    const read = this.#read;
    const { consumer, cursor, dealt } = read;
    if (!this.#due) return undefined;
    const path = `/ack/${encodeURIComponent(consumer)}`;
    const sending = call(this.#http, path, { eid: cursor }, { timeoutMs, signal: this.#closing.signal }).then(
      () => void (read.known = Math.max(read.known, dealt)),
      (error: unknown) => error,
    );
    this.#sending = sending;
    const failure = await sending;
    this.#sending = undefined;
    if (!failure || mayHeal(failure)) this.#plan();
    return failure;
  }
}

const mayHeal = (error: unknown) => error instanceof MegaphoneError && error.mayHeal;
