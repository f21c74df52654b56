import { MegaphoneError } from "./errors.js";
import type { CallOptions, Http } from "./http.js";
import type { Hub } from "./hub.js";
import { type Line, Read, type Sink } from "./read.js";
import { Backoff, now, sleep } from "./time.js";

const ACK_EVENTS = 50;
const ACK_AGE_MS = 1_000;
const LAST_ACK_MS = 1_000;
const KEPT_EVENTS = 100;
const INBOX_EVENTS = 1_000;

/** An event, as its channel gave it to the app. */
export interface Event<T = any> {
  readonly id: string;
  readonly stream: string;
  /** When the broker took it. */
  readonly time: Date;
  readonly body: T;
}

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
  /** Is called before the first event after a gap. Without it, iterating throws `EVENTS_LOST`. */
  onGap?: () => unknown;
  /** Overrides that of the client. */
  heartbeatMs?: number;
  /** Lets the tabs of a browser share one read: `tabs` of `./tabs`. Only with `ack: "none"`. */
  share?: Share;
}

/** Where the events of a read come from. */
export interface Source {
  begin(): void;
  end(): void;
}

/** Puts another source in place of the read's own. */
export type Share = (read: Read, own: Source) => Source;

interface Entry {
  event: Event;
  /** How many listeners have not dealt with it. */
  left: number;
}

type Item = Entry | MegaphoneError;

const isEvent = (item: Item | undefined): item is Entry => !!item && "event" in item;

/** What is read from a channel, in order: all events, or those of one stream. */
export class Events<T = any> implements AsyncIterableIterator<Event<T>> {
  /** @internal */ items: Item[] = [];
  readonly #owner: Owner;
  #handed: Entry | undefined;
  #waiting: (() => void)[] = [];
  #isLeft = false;

  /** @internal */
  constructor(owner: Owner, readonly stream?: string) {
    this.#owner = owner;
    owner.enter(this);
  }

  /** @internal */
  put(item: Item): void {
    this.items.push(item);
    this.wake();
  }

  /** @internal */
  wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** @internal Count as dealt with what the app was given. */
  deal(): void {
    const handed = this.#handed;
    this.#handed = undefined;
    if (handed) this.#owner.deal(handed);
  }

  /** Throws the error that ended the channel, or `EVENTS_LOST`, after which a new iteration goes on. */
  async next(): Promise<IteratorResult<Event<T>, undefined>> {
    this.deal();
    while (!this.#isLeft) {
      const item = this.items.shift();
      this.#owner.room(this);
      if (isEvent(item)) {
        this.#handed = item;
        return { value: item.event, done: false };
      }
      if (item) {
        if (await this.#owner.passes(item)) continue;
        await this.return();
        throw item;
      }
      if (this.#owner.isOver) {
        if (this.#owner.error) throw this.#owner.error;
        break;
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    return { value: undefined, done: true };
  }

  /** Leave: as `break` does. What was not taken stays for whoever asks next. */
  async return(): Promise<IteratorResult<Event<T>, undefined>> {
    if (!this.#isLeft) {
      this.#isLeft = true;
      this.#owner.leave(this, this.#handed);
      this.wake();
    }
    return { value: undefined, done: true };
  }

  /** Call a function for each event. Returns: a function that ends this. */
  subscribe(next: (event: Event<T>) => unknown, error?: (error: unknown) => unknown): () => void {
    const run = async () => {
      for await (const event of this) await next(event);
    };
    void (error ? run().catch(error) : run());
    return () => void this.return();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

/** @internal The side of a channel that its `Events` see. */
interface Owner {
  isOver: boolean;
  error: unknown;
  enter(events: Events): void;
  leave(events: Events, handed: Entry | undefined): void;
  deal(entry: Entry): void;
  room(events: Events): void;
  passes(item: MegaphoneError): Promise<boolean>;
}

/**
 * A channel to read. Reading begins at the first use, reconnects by itself, and ends only with
 * `close`, or with an error that no other try heals. Iterate over the channel, or over its streams.
 */
export class Channel implements AsyncIterable<Event> {
  /** Is called with each new state. */
  onstate: ((state: State) => unknown) | undefined;
  #state: State = "connecting";
  readonly #http: Http;
  readonly #hub: Hub;
  readonly #address: string | ((former?: Made) => Promise<Made>);
  readonly #options: ChannelOptions;
  readonly #listeners = new Set<Events>();
  readonly #undealt: Entry[] = [];
  #kept: Item[] = [];
  #left: Entry[] = [];
  #read: Read | undefined;
  #source: Source | undefined;
  #made: Made | undefined;
  #isReading = false;
  #isFull = false;
  #isMaking = false;
  readonly #backoff = new Backoff();
  #ackTimer: ReturnType<typeof setTimeout> | undefined;
  #acking: Promise<unknown> | undefined;
  readonly #closing = new AbortController();
  readonly #owner: Owner;
  readonly #sink: Sink;

  /** Use `Megaphone.channel`. @internal */
  constructor(http: Http, hub: Hub, address: string | ((former?: Made) => Promise<Made>), options: ChannelOptions) {
    this.#http = http;
    this.#hub = hub;
    if (options.share && (options.ack ?? "none") !== "none") throw new TypeError("`share` is only for `ack: \"none\"`");
    this.#address = address;
    this.#options = options;
    this.#owner = {
      isOver: false,
      error: undefined,
      enter: (events) => this.#enter(events),
      leave: (events, handed) => this.#leave(events, handed),
      deal: (entry) => {
        if (this.#options.ack !== "manual") this.#deal(entry);
      },
      room: (events) => this.#room(events),
      passes: (item) => this.#passes(item),
    };
    this.#sink = {
      take: (lines) => this.#take(lines),
      gap: () => this.#spread(new MegaphoneError("EVENTS_LOST", "events are missing here: fetch the state they would have changed")),
      state: (state) => this.#become(state),
      ended: (error) => this.#ended(error),
    };
  }

  get state(): State {
    return this.#state;
  }

  /** The id of the last event dealt with: keep it, and pass it as `after` to go on later. */
  get cursor(): string | undefined {
    return this.#read?.cursor ?? this.#options.after;
  }

  /** What the function in place of an address returned last. */
  get made(): Made | undefined {
    return this.#made;
  }

  [Symbol.asyncIterator](): Events {
    return new Events(this.#owner);
  }

  /** Return the events of one stream, beginning with those of the last 100 that nobody took. */
  stream<T = any>(stream: string): Events<T> {
    return new Events<T>(this.#owner, stream);
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
    const index = this.#undealt.findIndex(({ event }) => event.id === id);
    for (const entry of this.#undealt.slice(0, index + 1)) entry.left = 0;
    this.#settle();
    const read = this.#read;
    if (!read?.acknowledges) return;
    const until = now() + (this.#http.options.timeoutMs ?? 30_000);
    for (const dealt = read.dealtWith; !read.isKnown(dealt); ) {
      if (now() > until) throw new MegaphoneError("CONNECTION_FAILED", "no answer to an acknowledgement in time");
      const error = await this.#acknowledge(until - now());
      if (error && !mayHeal(error)) throw error;
    }
  }

  /** Stop reading until somebody begins to iterate, which goes on where this ended. */
  pause(): void {
    this.#pause();
  }

  /** Stop reading. The app has dealt with what it was given; the broker is told in a second at most. */
  async close(): Promise<void> {
    for (const events of this.#listeners) events.deal();
    for (const entry of this.#left.splice(0)) this.#owner.deal(entry);
    await this.#close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close();
  }

  async #close(): Promise<void> {
    if (this.#owner.isOver) return;
    this.#over();
    const timer = setTimeout(() => this.#closing.abort(), LAST_ACK_MS);
    await this.#acknowledge();
    clearTimeout(timer);
    this.#closing.abort();
  }

  // -- Reading

  #become(state: State): void {
    if (state === this.#state || this.#owner.isOver) return;
    this.#state = state;
    this.onstate?.(state);
  }

  #over(error?: unknown): void {
    this.#pause();
    clearTimeout(this.#ackTimer);
    this.#become("closed");
    this.#owner.isOver = true;
    this.#owner.error = error;
    for (const events of this.#listeners) events.wake();
  }

  #begin(): void {
    if (this.#isReading || this.#owner.isOver || this.#isFull) return;
    if (this.#read) {
      this.#isReading = true;
      this.#source!.begin();
    } else if (typeof this.#address === "string") this.#use(this.#address);
    else void this.#make(this.#address);
  }

  #use(consumer: string): void {
    const { ack = "none", after, heartbeatMs = this.#http.options.heartbeatMs ?? 10_000 } = this.#options;
    this.#read = new Read(consumer, ack !== "none", heartbeatMs, this.#sink, this.#made ? undefined : after);
    const read = this.#read;
    const own = { begin: () => this.#hub.add(read), end: () => this.#hub.remove(read) };
    this.#source = this.#options.share?.(read, own) ?? own;
    this.#undealt.length = 0;
    this.#begin();
  }

  async #make(make: (former?: Made) => Promise<Made>): Promise<void> {
    if (this.#isMaking) return;
    this.#isMaking = true;
    try {
      while (!this.#owner.isOver)
        try {
          this.#made = await make(this.#made);
          this.#use(this.#made.consumer);
          return;
        } catch (error) {
          // A TypeError is how `fetch` reports that there is no network.
          if (!(error instanceof TypeError || mayHeal(error))) return this.#over(error);
          this.#become("waiting");
          await sleep(this.#backoff.next(), this.#closing.signal);
        }
    } finally {
      this.#isMaking = false;
    }
  }

  #ended(error: MegaphoneError): void {
    if (error.code !== "NOT_FOUND" || typeof this.#address === "string") return this.#over(error);
    this.#pause();
    this.#read = undefined;
    const make = this.#address;
    // A channel that is gone at once, again and again, is not made without a pause.
    setTimeout(() => void this.#make(make), this.#backoff.failures++ ? this.#backoff.next() : 0);
  }

  #pause(): void {
    if (this.#isReading) this.#source?.end();
    this.#isReading = false;
  }

  #take(lines: Line[]): void {
    this.#backoff.reset();
    for (const { sid: stream, eid: id, ts, body } of lines) {
      const entry = { event: { id, stream, time: new Date(ts), body }, left: 0 };
      this.#undealt.push(entry);
      this.#spread(entry);
    }
    this.#settle();
  }

  /** Give an item to all that want it, or keep it for who asks later. */
  #spread(item: Item): void {
    let isTaken = false;
    for (const events of this.#listeners)
      if (!isEvent(item) || events.stream === undefined || events.stream === item.event.stream) {
        isTaken = true;
        if (isEvent(item)) item.left++;
        events.put(item);
        // With acknowledgements the window of the broker is the limit.
        if (!this.#read!.acknowledges && events.items.length >= INBOX_EVENTS) this.#fill();
      }
    if (!isTaken) this.#keep([item]);
  }

  #fill(): void {
    this.#isFull = true;
    this.#pause();
  }

  #room({ items }: Events): void {
    if (this.#isFull && items.length < INBOX_EVENTS / 2) {
      this.#isFull = false;
      this.#begin();
    }
  }

  #keep(items: Item[]): void {
    this.#kept.push(...items);
    if (this.#isReading) for (const item of this.#kept.splice(0, Math.max(0, this.#kept.length - KEPT_EVENTS))) if (isEvent(item)) this.#deal(item);
  }

  // -- Those who iterate

  #enter(events: Events): void {
    const { stream } = events;
    this.#listeners.add(events);
    this.#kept = this.#kept.filter((item) => {
      if (isEvent(item) && stream !== undefined && item.event.stream !== stream) return true;
      events.put(item);
      return false;
    });
    for (const entry of this.#left.splice(0)) this.#owner.deal(entry);
    this.#begin();
  }

  #leave(events: Events, handed: Entry | undefined): void {
    this.#listeners.delete(events);
    const { items, stream } = events;
    if (handed) this.#left.push(handed);
    if (stream === undefined && !this.#listeners.size) {
      this.#pause();
      this.#isFull = false;
      this.#kept.push(...items);
    } else {
      // What stays unacknowledged would fill the window of the broker, and hold back the others.
      for (const item of items) if (isEvent(item)) this.#deal(item);
      if (!this.#listeners.size || stream !== undefined) this.#keep(items.filter((item) => !isEvent(item) || !item.left));
    }
  }

  async #passes(item: MegaphoneError): Promise<boolean> {
    const { onGap } = this.#options;
    if (!onGap) return false;
    if (!this.#told.has(item)) {
      this.#told.add(item);
      await onGap();
    }
    return true;
  }

  readonly #told = new WeakSet<MegaphoneError>();

  // -- Acknowledging

  #deal(entry: Entry): void {
    entry.left--;
    this.#settle();
  }

  /** Count as dealt with the events at the begin that all have dealt with. */
  #settle(): void {
    let count = this.#undealt.findIndex(({ left }) => left > 0);
    if (count < 0) count = this.#undealt.length;
    const last = this.#undealt.splice(0, count).at(-1);
    if (!last || !this.#read) return;
    this.#read.deal(count, last.event.id);
    this.#planAck();
  }

  #planAck(): void {
    const read = this.#read;
    if (!read?.acknowledges || this.#acking || this.#owner.isOver || !read.due) return;
    const isFull = read.due >= ACK_EVENTS;
    if (isFull) clearTimeout(this.#ackTimer);
    else if (this.#ackTimer) return;
    this.#ackTimer = setTimeout(() => void this.#acknowledge(), isFull ? 0 : ACK_AGE_MS);
  }

  /** Acknowledge once all that is dealt with. A failure is repeated later. Returns: the failure. */
  async #acknowledge(timeoutMs = this.#http.options.timeoutMs): Promise<unknown> {
    clearTimeout(this.#ackTimer);
    this.#ackTimer = undefined;
    await this.#acking;
    const read = this.#read;
    if (!read?.acknowledges || !read.due) return undefined;
    const isKnown = read.acknowledging();
    const options: CallOptions = { signal: this.#closing.signal };
    if (timeoutMs) options.timeoutMs = timeoutMs;
    const sent = this.#http.call(`/ack/${encodeURIComponent(read.consumer)}`, { eid: read.cursor }, options).then(
      () => void isKnown(),
      (error: unknown) => error,
    );
    this.#acking = sent;
    const failure = await sent;
    this.#acking = undefined;
    if (!failure || mayHeal(failure)) this.#planAck();
    return failure;
  }
}

const mayHeal = (error: unknown) => error instanceof MegaphoneError && error.mayHeal;
