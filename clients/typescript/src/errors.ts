/** The classes of the Python client that have another name than the code. Those of writes are in `codes.ts`. */
const NAMES: Record<string, string> = { NOT_FOUND: "ChannelNotFound", BUSY: "ReaderBusy" };
const TIMEOUT = 408;

/**
 * An error of the broker or of the client. Decide by `code`, or by `name`, which is the name of the
 * class that the code has in the Python client. Texts are for people, and contain no address.
 */
export class MegaphoneError extends Error {
  /** Whether the same request may succeed later. */
  readonly mayHeal: boolean;
  override name: string;

  constructor(
    readonly code: string,
    message: string,
    /** The status of the answer, or the one that means the same. */
    status = 0,
    /** After how many seconds another try may succeed, if the broker said so. */
    readonly retryAfterS = 0,
    cause?: unknown,
  ) {
    super(message, { cause });
    const isDown = status > 499 || status === 421;
    this.mayHeal = isDown || status === TIMEOUT || status === 429 || code === "BUSY";
    this.name = NAMES[code] ?? (isDown ? "Unavailable" : code.toLowerCase().replace(/(?:^|_)(.)/g, (_, letter) => letter.toUpperCase()));
  }
}

export const connectionFailed = (cause?: unknown) => new MegaphoneError("CONNECTION_FAILED", "there is no connection", TIMEOUT, 0, cause);

export const protocolError = (length: number) =>
  new MegaphoneError("PROTOCOL_ERROR", `${length} characters that are not a broker's`);
