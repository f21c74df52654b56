import type { Ledger } from "./acks.js";
import { MegaphoneError } from "./errors.js";
import { type Entry, type Event, Events } from "./events.js";
import type { Http } from "./http.js";
import { Inbox } from "./inbox.js";
import { type Line, Read, type Sink } from "./read.js";
import type { Reads, Source } from "./reads.js";
import { waitMs } from "./time.js";

export type State = "connecting" | "open" | "waiting" | "closed";

/** What a function in place of an address returns. */
export interface Made {
  consumer: string;
  producer?: string;
  streams?: string[];
}

export interface ChannelOptions {
  /**
   * When an event counts as dealt with, so that the broker may drop it: `none` (default, for pages)
   * as soon as it was sent, and the last 100 are kept for a read that comes back; `auto` when the
   * app asks for the next one; `manual` when it calls `ack`.
   */
  ack?: "none" | "auto" | "manual";
  /** The cursor of an earlier read; "-" stands before the first event. */
  after?: string;
  /** The only streams that are wanted. The others count as dealt with. */
  streams?: string[];
  /** After so many events the channel is closed, and iterating ends. */
  limit?: number;
  /** Is called before the first event after a gap. Without it, iterating throws `EVENTS_LOST`. */
  onGap?: () => unknown;
  /** Overrides that of the client. */
  heartbeatMs?: number;
  /** Lets the tabs of a browser share one read: `tabs` of `./tabs`. Only with `ack: "none"`. */
  share?: Share;
}

/** Puts another source in place of the read's own. */
export type Share = (read: Read, own: Source) => Source;

/**
 * A channel to read. Reading begins at the first use, reconnects by itself, and ends only with
 * `close`, or with an error that no other try heals. Iterate over the channel, or over its streams.
 */
export class Channel implements AsyncIterable<Event> {
  /** Is called with each new state. */
  onstate: ((state: State) => unknown) | undefined;
  #state: State = "connecting";
  readonly #http: Http;
  readonly #reads: Reads;
  readonly #address: string | ((former?: Made) => Promise<Made>);
  readonly #options: ChannelOptions;
  readonly #inbox: Inbox;
  #made: Made | undefined;
  #read: Read | undefined;
  #source: Source | undefined;
  /** How many events more are wanted. */
  #left: number | undefined;
  #failures = 0;
  #isReading = false;
  #isMaking = false;
  readonly #acknowledges: boolean;
  /** Is loaded only for reads that acknowledge. */
  #Ledger: typeof Ledger | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Use `Megaphone.channel`. @internal */
  constructor(http: Http, reads: Reads, address: string | ((former?: Made) => Promise<Made>), options: ChannelOptions) {
    const { ack = "none", limit, onGap, share } = options;
    if (share && ack !== "none") throw new TypeError('`share` is only for `ack: "none"`');
    this.#http = http;
    this.#reads = reads;
    this.#address = address;
    this.#options = options;
    this.#left = limit;
    this.#acknowledges = ack !== "none";
    this.#inbox = new Inbox({ onGap, begin: () => this.#begin(), pause: () => this.pause() });
  }

  get state(): State {
    return this.#state;
  }

  /** The id of the last event dealt with: keep it, and pass it as `after` to go on later. */
  get cursor(): string | undefined {
    return (this.#inbox.ledger ? undefined : this.#inbox.cursor) ?? this.#read?.cursor ?? this.#options.after;
  }

  /** What the function in place of an address returned last. */
  get made(): Made | undefined {
    return this.#made;
  }

  [Symbol.asyncIterator](): Events {
    return new Events(this.#inbox);
  }

  /** Return the events of one stream, beginning with those of the last 100 that nobody took. */
  stream<T = any>(stream: string): Events<T> {
    return new Events<T>(this.#inbox, stream);
  }

  /** Return the body of the next event of a stream, which may have come already. */
  async first<T = any>(stream: string, { signal }: { signal?: AbortSignal } = {}): Promise<T> {
    signal?.throwIfAborted();
    const events = this.stream<T>(stream);
    const stop = () => void events.return();
    signal?.addEventListener("abort", stop);
    try {
      const { value } = await events.next();
      signal?.throwIfAborted();
      if (!value) throw new MegaphoneError("NOT_FOUND", "the channel is closed");
      events.deal();
      return value.body;
    } finally {
      signal?.removeEventListener("abort", stop);
      stop();
    }
  }

  /** Acknowledge an event and all before it. Returns when the broker knows. */
  async ack({ id }: { id: string }): Promise<void> {
    this.#inbox.ledger?.dealUpTo(id);
    await this.#inbox.ledger?.reach();
  }

  /** Stop reading until somebody begins to iterate, which goes on where this ended. */
  pause(): void {
    if (this.#isReading) this.#source!.end();
    this.#isReading = false;
  }

  /** Stop reading. The app has dealt with what it was given; the broker is told in a second at most. */
  close(): Promise<void> {
    this.#inbox.dealAll();
    return this[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#inbox.isOver) this.#end();
    await this.#inbox.ledger?.close();
  }

  #end(error?: unknown): void {
    clearTimeout(this.#timer);
    this.pause();
    this.#become("closed");
    this.#inbox.end(error);
  }

  #become(state: State): void {
    if (state === this.#state || this.#inbox.isOver) return;
    this.#state = state;
    this.onstate?.(state);
  }

  #begin(): void {
    if (this.#isReading || this.#inbox.isOver || this.#inbox.isFull) return;
    if (!this.#read) return void this.#make();
    this.#isReading = true;
    this.#source!.begin();
  }

  /** Begin again a moment later, and later the more often that failed. */
  #beginLater(): void {
    this.#timer = setTimeout(() => this.#begin(), this.#failures++ && waitMs(this.#failures));
  }

  async #make(): Promise<void> {
    const make = this.#address;
    if (this.#isMaking) return;
    this.#isMaking = true;
    try {
      if (typeof make !== "string") this.#made = await make(this.#made);
      if (this.#acknowledges) this.#Ledger ??= (await import("./acks.js")).Ledger;
      this.#use(this.#made?.consumer ?? (make as string));
    } catch (error) {
      // A TypeError is how `fetch` reports that there is no network.
      if (!(error instanceof TypeError || (error as MegaphoneError).mayHeal)) this.#end(error);
      this.#become("waiting");
      this.#isMaking = false;
      return this.#beginLater();
    }
    this.#isMaking = false;
    this.#begin();
  }

  #use(consumer: string): void {
    const { ack, after, heartbeatMs = this.#http.options.heartbeatMs ?? 10_000, share, streams } = this.#options;
    const acknowledges = this.#acknowledges;
    const sink: Sink = {
      take: (lines) => this.#take(lines),
      gap: () => this.#inbox.put([{ length: 0, left: 0 }]),
      state: (state) => this.#become(state),
      ended: (error) => this.#ended(error),
    };
    // A log that passes over streams forgets cursors, so only what is acknowledged can be read so.
    const read = new Read(consumer, acknowledges, heartbeatMs, sink, this.#made ? undefined : after, acknowledges ? streams : undefined);
    const own = { begin: () => this.#reads.add(read), end: () => this.#reads.remove(read) };
    read.limit = this.#left;
    this.#inbox.forget();
    this.#read = read;
    this.#source = share?.(read, own) ?? own;
    this.#inbox.ledger = this.#Ledger && new this.#Ledger(this.#http, read, ack === "auto");
  }

  #take(lines: Line[]): void {
    const { streams } = this.#options;
    const isWanted = (stream?: string) => streams?.includes(stream!) ?? true;
    const entries: Entry[] = [];
    this.#failures = 0;
    for (const { sid: stream, eid: id, ts, body, length } of lines) {
      if (isWanted(stream) && this.#left !== undefined && --this.#left < 0) break;
      entries.push({ event: { id, stream, time: new Date(ts), body }, length, left: 0 });
    }
    this.#read!.limit = this.#left;
    this.#inbox.put(entries, isWanted);
    if (this.#left! < 1) this.#end();
  }

  #ended(error: MegaphoneError): void {
    if (error.code !== "NOT_FOUND" || typeof this.#address === "string") return this.#end(error);
    this.pause();
    this.#read = undefined;
    this.#beginLater();
  }
}
