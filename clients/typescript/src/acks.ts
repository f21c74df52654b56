import { call } from "./calling.js";
import { MegaphoneError } from "./errors.js";
import type { Http } from "./http.js";
import type { Inbox } from "./inbox.js";
import { type Line, Read } from "./read.js";
import { now } from "./time.js";

const EVENTS = 50;
const AGE_MS = 1_000;
const LAST_MS = 1_000;

/**
 * A read that acknowledges what the app has dealt with: 50 events at a time, or after a second. The
 * next request resumes there, and acknowledges it too.
 */
export class Acknowledging extends Read {
  /** How many events were dealt with, at all and when the read was asked for last. */
  #dealt = 0;
  #asked = 0;
  /** How many of them the broker knows. */
  #known = 0;
  /** What came and is not dealt with: the next answer begins with it. */
  readonly #again = new Set<string>();
  readonly #closing = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #sending: Promise<unknown> | undefined;

  readonly #http: Http;
  override readonly acknowledges = true;

  constructor(http: Http, override readonly streams: string[] | undefined, ...common: ConstructorParameters<typeof Read>) {
    super(...common);
    this.#http = http;
  }

  override ask(reader: string, polls?: boolean): Record<string, any> {
    const asked = super.ask(reader, polls);
    const isResumed = this.streams && this.hasBegun && this.due === 0;
    this.#asked = this.#dealt;
    return {
      ...asked,
      // While the broker passes over streams that nobody wants, a cursor would look like a gap; but what is acknowledged needs none.
      after: isResumed ? undefined : this.cursor ?? undefined,
      ack: "explicit",
      stream: this.streams,
      limit: asked.limit && asked.limit + this.#again.size,
    };
  }

  override opened(hasGap: boolean, position: string | null | undefined): void {
    this.#known = Math.max(this.#known, this.#asked);
    if (hasGap) this.#again.clear();
    super.opened(hasGap, position);
  }

  override take(line?: Line): void {
    // An answer may begin with what was dealt with since it was asked for.
    if (line && line.eid === this.cursor) this.#again.clear();
    else if (line) this.#again.add(line.eid);
    super.take(line);
  }

  override deal(id: string): void {
    super.deal(id);
    for (const one of this.#again) {
      this.#again.delete(one);
      if (one === id) break;
    }
    this.#dealt++;
    this.#plan();
  }

  /** How many events are dealt with, and the broker does not know that. */
  get due(): number {
    return this.#dealt - this.#known;
  }

  /** Acknowledge what is due, soon. */
  #plan(): void {
    if (this.#sending || this.#closing.signal.aborted || !this.due) return;
    const isFull = this.due >= EVENTS;
    if (isFull) clearTimeout(this.#timer);
    else if (this.#timer) return;
    this.#timer = setTimeout(() => this.#send(), isFull ? 0 : AGE_MS);
  }

  override async ackUpTo(inbox: Inbox, id: string): Promise<void> {
    const index = inbox.pending.findIndex(({ event }) => event!.id === id);
    for (const entry of inbox.pending.slice(0, index + 1)) entry.left = 0;
    inbox.settle();
    const until = now() + (this.#http.options.timeoutMs ?? 30_000);
    for (const dealt = this.#dealt; this.#known < dealt; ) {
      if (now() > until) throw new MegaphoneError("CONNECTION_FAILED", "no answer to an acknowledgement in time");
      const error = await this.#send(until - now());
      if (error && !mayHeal(error)) throw error;
    }
  }

  override async close(): Promise<void> {
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
    const { readAddress, cursor } = this;
    const dealt = this.#dealt;
    if (!this.due) return undefined;
    const path = `/ack/${encodeURIComponent(readAddress)}`;
    const sending = call(this.#http, path, { eid: cursor }, { timeoutMs, signal: this.#closing.signal }).then(
      () => void (this.#known = Math.max(this.#known, dealt)),
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
