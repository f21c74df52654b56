import { MegaphoneError, connectionFailed, protocolError } from "./errors.js";
import type { Http, Request } from "./http.js";
import type { Line } from "./read.js";
import { now } from "./time.js";

const SILENT_HEARTBEATS = 2.5;

/** What a connection tells of its answer. */
export interface Answer {
  /** The answer has begun. */
  opened(headers: Headers): void;
  /** Bytes came, with these lines, which may be none. A line may have come in any number of pieces. */
  take(lines: Line[]): void;
}

/** One request for a read, and its answer. */
export class Connection {
  lastByte = now();
  /** Whether `cut` has ended it. */
  isCut = false;
  readonly #abort = new AbortController();

  cut(): void {
    this.isCut = true;
    this.#abort.abort();
  }

  /** Cut it, if it was silent for a heartbeat: after a sleep it may be dead. */
  wake(heartbeatMs: number): void {
    if (now() - this.lastByte > heartbeatMs) this.cut();
  }

  /** Ask, and take the answer until it ends in order. Throws a MegaphoneError, also after a long silence. */
  async run(http: Http, path: string, request: Omit<Request, "signal">, heartbeatMs: number, { opened, take }: Answer): Promise<void> {
    const { signal } = this.#abort;
    const decoder = new TextDecoder("utf-8", { fatal: true });
    let timer: ReturnType<typeof setTimeout> | undefined;
    let length = 0; // of what is being understood
    let rest = "";
    const beat = () => {
      this.lastByte = now();
      clearTimeout(timer);
      timer = setTimeout(() => this.#abort.abort(), SILENT_HEARTBEATS * heartbeatMs);
    };
    const understand = (piece: Uint8Array) => {
      const lines: Line[] = [];
      beat();
      length = piece.length;
      try {
        const text = decoder.decode(piece, { stream: true });
        const end = text.lastIndexOf("\n") + 1;
        const whole = end && rest + text.slice(0, end);
        rest = end ? text.slice(end) : rest + text;
        for (const one of whole ? whole.split("\n") : [])
          if (one.trim()) {
            const line = JSON.parse(one);
            if (!line.eid && line.channel == null) throw 0;
            line.length = one.length;
            lines.push(line);
          }
        length = 0;
      } finally {
        take(lines); // also those before one that is wrong
      }
    };
    try {
      beat();
      const response = await http.open(path, { ...request, signal });
      opened(response.headers);
      http.polls ||= !response.body;
      if (http.polls) return understand(new Uint8Array(await response.arrayBuffer()));
      for (const reader = response.body!.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) return;
        understand(value);
      }
    } catch (error) {
      throw error instanceof MegaphoneError ? error : length ? protocolError(length) : connectionFailed("the connection broke");
    } finally {
      clearTimeout(timer);
      this.#abort.abort();
    }
  }
}
