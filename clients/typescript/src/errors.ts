/** The classes of the Python client that have another name than the code. */
const NAMES: Record<string, string> = {
  NOT_FOUND: "ChannelNotFound",
  BUSY: "ReaderBusy",
  UNSUPPORTED_MEDIA_TYPE: "BadRequest",
  TIMEOUT: "WriteTimeout",
  SKIPPED: "WriteTimeout",
};
const PASSING = /^(BUSY|TOO_SLOW|LIMIT_EXCEEDED|RATE_LIMITED|TIMEOUT|SKIPPED|CONNECTION_FAILED)$/;
const UNAVAILABLE = /^(MOVED|NO_AGENT|SHUTTING_DOWN|INTERNAL_SERVER_ERROR|.+_UNAVAILABLE)$/;

/**
 * An error of the broker or of the client. Decide by `code`, or by `name`, which is the name of the
 * class that the code has in the Python client. Texts are for people, and contain no address.
 */
export class MegaphoneError extends Error {
  /** Whether the same request may succeed later. */
  readonly mayHeal: boolean;

  constructor(
    readonly code: string,
    message: string,
    /** Whether the status says so, which counts if the code is unknown. */
    isUnavailable?: boolean,
    /** After how many seconds another try may succeed, if the broker said so. */
    readonly retryAfterS?: number,
    /** Whether the request may have arrived, if it got no answer. */
    readonly hasArrived = true,
  ) {
    super(message);
    const isPassing = PASSING.test(code);
    const isDown = !isPassing && (isUnavailable || UNAVAILABLE.test(code));
    this.mayHeal = isPassing || isDown;
    this.name = isDown ? "Unavailable" : NAMES[code] ?? code.toLowerCase().replace(/(?:^|_)(.)/g, (_, letter) => letter.toUpperCase());
  }
}

export const connectionFailed = (message: string, hasArrived?: boolean) =>
  new MegaphoneError("CONNECTION_FAILED", message, false, undefined, hasArrived);

export const protocolError = (bytes: number) =>
  new MegaphoneError("PROTOCOL_ERROR", `${bytes} bytes of an answer are not those of a broker`);
