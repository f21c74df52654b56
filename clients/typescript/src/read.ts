import type { MegaphoneError } from "./errors.js";
import type { Inbox } from "./inbox.js";
import { now, waitMs } from "./time.js";

const BUSY_WAIT_MS = 30_000;
const QUICK_END_MS = 100;
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
  take(line: Line): void;
  gap(): void;
  /** The read is open, or waits before its next try. */
  become(state: "open" | "waiting"): void;
  /** The read has ended for good. */
  ended(error: MegaphoneError): void;
}

/** The rules of the read of one channel, without input and output: what to ask for, what is new, and how long to wait. */
export class Read {
  /** The last event that came, or one that stands before the first. */
  received: string | null | undefined;
  /** The last event that is dealt with, or one that stands before the first event. */
  cursor: string | null | undefined;
  hasBegun = false;
  /** How many events came. */
  came = 0;
  /** The name of the reader, if it is not that of the client. */
  reader: string | undefined;
  /** How many events more the app wants. */
  limit: number | undefined;
  readonly ids = new Set<string>();
  readonly acknowledges?: boolean;
  /** The only streams that the broker is to send, if it acknowledges. */
  readonly streams?: string[] | undefined;
  #cameBefore = 0;
  #heardAt = 0;
  #failures = 0;
  #busySince = 0;
  /** How many requests may have been answered, although the answer did not arrive. */
  #unanswered = 0;

  constructor(readonly readAddress: string, readonly beatMs: number, public sink: Sink, after?: string) {
    this.received = this.cursor = after;
  }

  /** Return what to ask for: the members of `POST /read`, and the parameters of `GET /read`. */
  ask(reader: string, polls?: boolean): Record<string, any> {
    const { hasBegun } = this;
    const wait_ms = polls ? (this.came > this.#cameBefore ? 0 : this.beatMs) : undefined;
    this.#heardAt = now();
    this.#cameBefore = this.came;
    return {
      // What came in a read whose answer was lost counts as delivered.
      after: this.received ?? (this.#unanswered++ ? "-" : undefined),
      heartbeat_ms: this.beatMs,
      reader: this.reader ?? reader,
      takeover: hasBegun || undefined,
      returning: hasBegun || undefined,
      // A long poll brings one event, and the next one what came meanwhile.
      limit: wait_ms ? 1 : this.limit,
      wait_ms,
    };
  }

  /** The answer begins: after a position, and perhaps after a gap. */
  opened(hasGap: boolean, position: string | null | undefined): void {
    this.hasBegun = true;
    if (hasGap || this.received == null) this.received = this.cursor = position;
    if (hasGap) this.sink.gap();
    this.sink.become("open");
  }

  /** A line came, or without one a heartbeat. */
  take(line?: Line): void {
    const { ids } = this;
    this.#heardAt = now();
    this.#failures = 0;
    if (!line || ids.has(line.eid)) return;
    ids.add((this.received = line.eid));
    if (ids.size > IDS_REMEMBERED) ids.delete(ids.values().next().value!);
    this.came++;
    this.sink.take(line);
  }

  /** Only of a read that acknowledges: acknowledge an event, and all before it. Returns when the broker knows. */
  ackUpTo?(inbox: Inbox, id: string): Promise<void>;
  /** Only of a read that acknowledges: acknowledge what is dealt with, for a second at most. */
  close?(): Promise<void>;

  /** The app has dealt with an event, and with all before it. */
  deal(id: string): void {
    this.cursor = id;
  }

  /** Whether nothing came for a heartbeat: after a sleep, the connection may be dead. */
  isSilent(): boolean {
    return now() - this.#heardAt > this.beatMs;
  }

  /** The answer ended in order. Returns: how many milliseconds to wait before the next request. */
  ended(): number {
    if (now() - this.#heardAt < QUICK_END_MS && this.came === this.#cameBefore) return waitMs(this.#failures++, QUICK_END_MS);
    return (this.#failures = 0);
  }

  /** The request failed. Returns: how long to wait; undefined, if the read has ended for good. */
  failed(error: MegaphoneError): number | undefined {
    const { code } = error;
    if (code !== "CONNECTION_FAILED") this.#unanswered--;
    const isKept = code === "BUSY" && !this.hasBegun && now() - (this.#busySince ||= now()) >= BUSY_WAIT_MS;
    if (error.mayHeal && !isKept) {
      this.sink.become("waiting");
      return waitMs(this.#failures++, error.retryAfterS * 1000);
    }
    this.sink.ended(error);
    return;
  }
}
