import { MegaphoneError } from "./errors.js";
import { Backoff, now } from "./time.js";

const BUSY_WAIT_MS = 30_000;
const QUICK_END_MS = 100;
const IDS_REMEMBERED = 1_000;

/** A line of a read: an event, or, of a read of many channels, the begin or end of one of them. */
export interface Line {
  sid: string;
  eid: string;
  ts: string;
  body: unknown;
  channel?: number;
  begun?: boolean;
  position?: string | null;
  recovered?: boolean | null;
  done?: boolean;
  code?: string;
  message?: string;
  retryAfter?: number;
}

/** Where a read puts what comes. */
export interface Sink {
  take(lines: Line[]): void;
  gap(): void;
  /** The read is open, or waits before its next try. */
  state(state: "connecting" | "open" | "waiting"): void;
  /** The read has ended for good. */
  ended(error: MegaphoneError): void;
}

/**
 * The rules of the read of one channel, without input and output: what to ask for, what is new, how
 * long to wait, and what is to be acknowledged.
 */
export class Read {
  /** The id of the last event that is dealt with, or one that stands before the first event. */
  cursor: string | undefined;
  hasBegun = false;
  #received: string | undefined;
  #latest = new Set<string>();
  #former = new Set<string>();
  #backoff = new Backoff();
  #rest = new Backoff(2_000);
  #mayHaveRead = false;
  #busySince = 0;
  #askedAt = 0;
  #askedAfter = 0;
  /** How many events came, were dealt with, are acknowledged, and were dealt with when asking. */
  #came = 0;
  #dealt = 0;
  #acknowledged = 0;
  #asked = 0;

  constructor(
    readonly consumer: string,
    readonly acknowledges: boolean,
    readonly heartbeatMs: number,
    public sink: Sink,
    after?: string,
    /** The name of the reader, if it is not that of the client. */
    public reader?: string,
  ) {
    this.cursor = this.#received = after;
  }

  /** Return the cursor to ask for. */
  ask(): string | undefined {
    this.#askedAt = now();
    this.#asked = this.#dealt;
    this.#askedAfter = this.#came;
    if (!this.hasBegun) this.sink.state("connecting"); // a read that ends in order is no break
    // What came in a read whose answer was lost counts as delivered, unless it is acknowledged.
    return this.acknowledges ? this.cursor : (this.#received ?? (this.#mayHaveRead ? "-" : undefined));
  }

  opened(recovered: boolean | null | undefined, position: string | null | undefined): void {
    this.hasBegun = true;
    this.#busySince = 0;
    this.#acknowledged = Math.max(this.#acknowledged, this.#asked);
    const isGap = recovered === false;
    if (position != null) {
      if (isGap) this.#received = this.cursor = position;
      this.#received ??= position;
      this.cursor ??= position;
    }
    if (isGap) this.sink.gap();
    this.sink.state("open");
  }

  /** The last event that came, or one that stands before the first. */
  get received(): string | undefined {
    return this.#received;
  }

  /** Whether an event came, or is the one that stands before the first. */
  has(id: string): boolean {
    return id === this.#received || this.#latest.has(id) || this.#former.has(id);
  }

  /** The connection was cut here, so that its answer may be lost, and what that delivered. */
  cut(): void {
    this.#mayHaveRead = true;
  }

  /** Bytes came. */
  alive(): void {
    this.#backoff.reset();
  }

  take(lines: Line[]): void {
    const fresh = lines.filter(({ eid }) => {
      if (this.#latest.has(eid) || this.#former.has(eid)) return false;
      if (this.#latest.size >= IDS_REMEMBERED) {
        this.#former = this.#latest;
        this.#latest = new Set();
      }
      this.#latest.add(eid);
      return true;
    });
    if (!fresh.length) return;
    this.#came += fresh.length;
    this.#received = fresh.at(-1)!.eid;
    this.sink.take(fresh);
  }

  /** The read ended cleanly. Returns: how many milliseconds to wait before the next one. */
  ended(): number {
    this.#backoff.reset();
    if (now() - this.#askedAt >= QUICK_END_MS || this.#came > this.#askedAfter) {
      this.#rest.reset();
      return 0;
    }
    return this.#rest.next(0.1);
  }

  /** The read failed. Returns: how long to wait; undefined, if it has ended for good. */
  failed(error: MegaphoneError): number | undefined {
    if (error.code === "CONNECTION_FAILED" && error.mayBeDone) this.#mayHaveRead = true;
    let mayHeal = error.mayHeal;
    if (error.code === "BUSY" && !this.hasBegun) {
      this.#busySince ||= now();
      mayHeal = now() - this.#busySince < BUSY_WAIT_MS;
    }
    if (mayHeal) {
      this.sink.state("waiting");
      return this.#backoff.next(error.retryAfterS);
    }
    this.sink.ended(error);
    return undefined;
  }

  /** The app has dealt with so many events more, the last of which has this id. */
  deal(count: number, id: string): void {
    this.#dealt += count;
    this.cursor = id;
  }

  /** How many events are dealt with and not acknowledged. */
  get due(): number {
    return this.#dealt - this.#acknowledged;
  }

  /** Return a function that notes that all that is dealt with now is acknowledged. */
  acknowledging(): () => void {
    const dealt = this.#dealt;
    return () => {
      this.#acknowledged = Math.max(this.#acknowledged, dealt);
    };
  }

  get dealtWith(): number {
    return this.#dealt;
  }

  isKnown(dealt: number): boolean {
    return this.#acknowledged >= dealt;
  }
}
