import type { Ledger } from "./acks.js";
import { MegaphoneError } from "./errors.js";
import type { Entry, Events } from "./events.js";

const KEPT_EVENTS = 100;
const MOST_EVENTS = 1_000;
const MOST_LENGTH = 8 * 1024 * 1024;

/** What an inbox needs of its channel. */
export interface Host {
  readonly onGap: (() => unknown) | undefined;
  begin(): void;
  pause(): void;
}

/** What was read from a channel, on its way to those who iterate over it. */
export class Inbox {
  /** Whether nothing more comes, and why, if that is an error. */
  isOver = false;
  error: unknown;
  /** Whether so much waits that the read pauses. If it acknowledges, the broker limits that. */
  isFull = false;
  /** What is not dealt with, if the read acknowledges. */
  ledger: Ledger | undefined;
  readonly #host: Host;
  readonly #listeners = new Set<Events>();
  /** What nobody took, for whoever asks later. */
  #kept: Entry[] = [];
  #count = 0;
  #last: string | undefined;

  constructor(host: Host) {
    this.#host = host;
  }

  /** The id of the event before the first one that was not given, or is being dealt with. */
  get cursor(): string | undefined {
    let first: Entry | undefined;
    const waiting = [...this.#listeners].flatMap(({ handed, items }) => handed ?? items.slice(0, 1));
    for (const one of [...waiting, ...this.#kept]) if (one.left && !(one.at! > first?.at!)) first = one;
    return first ? first.before : this.#last;
  }

  /** Give events, or a gap, to all who want them; `isWanted` says which the app wants at all. */
  put(entries: Entry[], isWanted: (stream?: string) => unknown = () => true): void {
    for (const entry of entries) {
      const { event } = entry;
      entry.at = this.#count++;
      entry.before = this.#last;
      this.#last = event?.id;
      if (event) this.ledger?.add(entry);
      if (!isWanted(event?.stream)) continue;
      for (const events of this.#listeners)
        if (events.wants(entry)) {
          entry.left++;
          events.put(entry);
        }
      if (!entry.left) this.#kept.push(entry);
    }
    this.#kept.splice(0, this.#kept.length - KEPT_EVENTS);
    this.ledger?.settle();
    if (!this.ledger && this.#holds(1)) {
      this.isFull = true;
      this.#host.pause();
    }
  }

  /** Whether as much waits for somebody as may, or this part of it. */
  #holds(part: number): boolean {
    return [...this.#listeners].some(({ items, length }) => items.length >= MOST_EVENTS * part || length >= MOST_LENGTH * part);
  }

  /** Somebody took something. */
  taken(): void {
    if (!this.isFull || this.#holds(0.5)) return;
    this.isFull = false;
    this.#host.begin();
  }

  /** What is here is of a channel that has gone. */
  forget(): void {
    this.#last = undefined;
  }

  /** The app has dealt with all that it was given. */
  dealAll(): void {
    for (const events of this.#listeners) events.deal();
    this.ledger?.dealLeft();
  }

  enter(events: Events): void {
    this.#listeners.add(events);
    this.ledger?.dealLeft();
    this.#kept = this.#kept.filter((entry) => {
      const isWanted = events.wants(entry);
      if (isWanted) events.put(entry);
      // What nobody wants now must not hold back the others.
      entry.left = +isWanted;
      return !isWanted;
    });
    this.ledger?.settle();
    this.#host.begin();
  }

  leave(events: Events): void {
    const { handed, items, stream } = events;
    this.#listeners.delete(events);
    const isLast = !this.#listeners.size;
    if (handed) this.ledger?.leave(handed, isLast);
    if (isLast && stream === undefined) {
      this.#host.pause();
      this.#kept.push(...items);
    } // Otherwise, what stays would fill the window of the broker, and hold back the others.
    else for (const entry of items) if (!--entry.left) this.#kept.push(entry);
    this.ledger?.settle();
    this.taken();
  }

  /** Let the app deal with a gap. Throws EVENTS_LOST, if the app has no function for that. */
  async pass(entry: Entry): Promise<void> {
    const { onGap } = this.#host;
    if (!onGap) throw new MegaphoneError("EVENTS_LOST", "events are missing here: fetch the state they would have changed");
    await (entry.dealing ??= (async () => onGap())());
  }

  /** Let nothing more come; what is here is still given. */
  end(error?: unknown): void {
    this.isOver = true;
    this.error = error;
    for (const events of this.#listeners) events.wake();
  }
}
