import type { Inbox } from "./inbox.js";

/** An event, as its channel gave it to the app. */
export interface Event<T = any> {
  readonly id: string;
  readonly stream: string;
  /** When the broker took it. */
  readonly time: Date;
  readonly body: T;
}

/** An event, or a gap, on its way to those who iterate. */
export interface Entry {
  readonly event?: Event;
  /** How long its line was. */
  readonly length: number;
  /** Its place among all entries of the channel, and the id of the event before it. */
  at?: number;
  before?: string | undefined;
  /** How many of them have not dealt with it. */
  left: number;
  /** What the app does about a gap. */
  dealing?: Promise<unknown>;
}

/** What is read from a channel, in order: all events, or those of one stream. */
export class Events<T = any> implements AsyncIterableIterator<Event<T>> {
  /** @internal */ items: Entry[] = [];
  /** @internal What the app is dealing with. */ handed: Entry | undefined;
  /** @internal How long the lines of all items are. */ length = 0;
  readonly #inbox: Inbox;
  #waiting: (() => void)[] = [];
  #hasLeft = false;

  /** @internal */
  constructor(inbox: Inbox, readonly stream?: string) {
    this.#inbox = inbox;
    inbox.enter(this);
  }

  /** @internal */
  wants({ event }: Entry): boolean {
    return !event || this.stream === undefined || this.stream === event.stream;
  }

  /** @internal */
  put(entry: Entry): void {
    this.items.push(entry);
    this.length += entry.length;
    this.wake();
  }

  /** @internal */
  wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** @internal Count as dealt with what the app was given. */
  deal(): void {
    if (this.handed) this.#inbox.ledger?.deal(this.handed);
    this.handed = undefined;
  }

  /** Throws the error that ended the channel, or `EVENTS_LOST`, after which a new iteration goes on. */
  async next(): Promise<IteratorResult<Event<T>, undefined>> {
    this.deal();
    while (!this.#hasLeft) {
      const entry = this.items.shift();
      if (entry) {
        this.length -= entry.length;
        this.#inbox.taken();
        if (entry.event) {
          this.handed = entry;
          return { value: entry.event, done: false };
        }
        try {
          await this.#inbox.pass(entry);
        } catch (error) {
          await this.return();
          throw error;
        }
      } else if (this.#inbox.error) throw this.#inbox.error;
      else if (this.#inbox.isOver) break;
      else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    return { value: undefined, done: true };
  }

  /** Leave: as `break` does. What was not taken stays for whoever asks next. */
  async return(): Promise<IteratorResult<Event<T>, undefined>> {
    if (!this.#hasLeft) {
      this.#hasLeft = true;
      this.#inbox.leave(this);
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
