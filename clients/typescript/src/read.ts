import type { MegaphoneError } from "./errors.js";
import { now, waitMs } from "./time.js";

const BUSY_WAIT_MS = 30_000;
const QUICK_END_MS = 100;
const LONGEST_REST_MS = 2_000;
const IDS_REMEMBERED = 1_000;

/** A line of a read: an event, or, of a read of many channels, the begin or end of one of them. */
export interface Line {
  sid: string;
  eid: string;
  ts: string;
  body: unknown;
  /** How long the line was, in characters. */
  length: number;
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
  /** The last event that came, or one that stands before the first. */
  received: string | undefined;
  hasBegun = false;
  /** How many events were dealt with, at all and when the read was asked for last. */
  dealt = 0;
  asked = 0;
  /** How many of them the broker knows. */
  known = 0;
  #came = 0;
  #askedAfter = 0;
  #askedAt = 0;
  #ids = new Set<string>();
  #failures = 0;
  #rests = 0;
  #busySince = 0;
  #mayHaveRead = false;

  constructor(
    readonly consumer: string,
    readonly acknowledges: boolean,
    readonly heartbeatMs: number,
    public sink: Sink,
    after?: string,
    /** The only streams that the broker is to send, and how many events more. */
    readonly streams?: string[],
    public limit?: number,
    /** The name of the reader, if it is not that of the client. */
    public reader?: string,
  ) {
    this.cursor = this.received = after;
  }

  /** Return what to ask for: the members of `POST /read`, and the parameters of `GET /read`. */
  ask(reader: string, polls?: boolean): Record<string, any> {
    const { acknowledges, dealt, hasBegun, limit, streams } = this;
    const wait_ms = polls ? (this.#came > this.#askedAfter ? 0 : Math.ceil(this.heartbeatMs)) : undefined;
    this.#askedAt = now();
    this.#askedAfter = this.#came;
    this.asked = dealt;
    if (!hasBegun) this.sink.state("connecting"); // a read that ends in order is no break
    return {
      // What came in a read whose answer was lost counts as delivered, unless it is acknowledged. While streams that
      // nobody wants are passed over, a cursor would look like a gap; but what is acknowledged needs none.
      after: acknowledges
        ? streams && hasBegun && dealt === this.known ? undefined : this.cursor
        : this.received ?? (this.#mayHaveRead ? "-" : undefined),
      ack: acknowledges ? "explicit" : undefined,
      heartbeat_ms: Math.ceil(this.heartbeatMs),
      reader: this.reader ?? reader,
      takeover: hasBegun || undefined,
      returning: hasBegun || undefined,
      stream: streams,
      // A long poll brings one event, and the next one what came meanwhile.
      limit: wait_ms ? 1 : limit && acknowledges ? limit + this.#came - dealt : limit,
      wait_ms,
    };
  }

  opened(recovered: boolean | null | undefined, position: string | null | undefined): void {
    this.hasBegun = true;
    this.#busySince = 0;
    this.known = Math.max(this.known, this.asked);
    if (position != null) {
      if (recovered === false) this.received = this.cursor = position;
      this.received ??= position;
      this.cursor ??= position;
    }
    if (recovered === false) this.sink.gap();
    this.sink.state("open");
  }

  /** Whether an event came, or is the one that stands before the first. */
  has(id: string): boolean {
    return id === this.received || this.#ids.has(id);
  }

  /** The connection was cut here, so that its answer may be lost, and what that delivered. */
  cut(): void {
    this.#mayHaveRead = true;
  }

  /** Bytes came. */
  alive(): void {
    this.#failures = 0;
  }

  take(lines: Line[]): void {
    const ids = this.#ids;
    const fresh = lines.filter(({ eid }) => {
      if (ids.has(eid)) return;
      ids.add(eid);
      if (ids.size > IDS_REMEMBERED) ids.delete(ids.values().next().value!);
      return true;
    });
    if (!fresh.length) return;
    this.#came += fresh.length;
    this.received = fresh.at(-1)!.eid;
    this.sink.take(fresh);
  }

  /** The read ended cleanly. Returns: how many milliseconds to wait before the next one. */
  ended(): number {
    this.#failures = 0;
    if (now() - this.#askedAt >= QUICK_END_MS || this.#came > this.#askedAfter) return (this.#rests = 0);
    return waitMs(this.#rests++, QUICK_END_MS, LONGEST_REST_MS);
  }

  /** The read failed. Returns: how long to wait; undefined, if it has ended for good. */
  failed(error: MegaphoneError): number | undefined {
    const { code, hasArrived, retryAfterS = 0 } = error;
    if (code === "CONNECTION_FAILED" && hasArrived) this.#mayHaveRead = true;
    const isKept = code === "BUSY" && !this.hasBegun && now() - (this.#busySince ||= now()) >= BUSY_WAIT_MS;
    if (error.mayHeal && !isKept) {
      this.sink.state("waiting");
      return waitMs(this.#failures++, retryAfterS * 1000);
    }
    this.sink.ended(error);
    return;
  }
}
