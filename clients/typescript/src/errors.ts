/** Names of errors, by the codes of the broker and of this client. */
export const NAMES: Record<string, string> = {
  BAD_REQUEST: "BadRequest",
  UNAUTHENTICATED: "Unauthenticated",
  TOKEN_EXPIRED: "TokenExpired",
  PERMISSION_DENIED: "PermissionDenied",
  NOT_FOUND: "ChannelNotFound",
  NO_SUCH_AGENT: "MegaphoneError",
  BUSY: "ReaderBusy",
  TAKEN_OVER: "TakenOver",
  WRONG_MODE: "MegaphoneError",
  TOO_SLOW: "TooSlow",
  PAYLOAD_TOO_LARGE: "PayloadTooLarge",
  UNSUPPORTED_MEDIA_TYPE: "BadRequest",
  LIMIT_EXCEEDED: "LimitExceeded",
  RATE_LIMITED: "RateLimited",
  TIMEOUT: "WriteTimeout",
  SKIPPED: "WriteTimeout",
  MOVED: "Unavailable",
  NO_AGENT: "Unavailable",
  SHUTTING_DOWN: "Unavailable",
  STORE_UNAVAILABLE: "Unavailable",
  KEYS_UNAVAILABLE: "Unavailable",
  TARGET_UNAVAILABLE: "Unavailable",
  INTERNAL_SERVER_ERROR: "Unavailable",
  CONNECTION_FAILED: "ConnectionFailed",
  OUTCOME_UNKNOWN: "OutcomeUnknown",
  EVENTS_LOST: "EventsLost",
  PROTOCOL_ERROR: "ProtocolError",
};

const MAY_HEAL = /^(ReaderBusy|TooSlow|LimitExceeded|RateLimited|WriteTimeout|Unavailable|ConnectionFailed)$/;
const NOT_TAKEN = /^(MOVED|NO_AGENT|SHUTTING_DOWN|(KEYS|TARGET)_UNAVAILABLE)$/;

/**
 * An error of the broker or of the client. Decide by `code`, or by `name`, which is the name of the
 * class that the code has in the Python client. Texts are for people, and contain no address.
 */
export class MegaphoneError extends Error {
  /** After how many seconds another try may succeed, if the broker said so. */
  readonly retryAfterS: number | undefined;
  /** Whether the same request may succeed later. */
  readonly mayHeal: boolean;
  /** Whether a request that failed in this way may have had its effect. */
  readonly mayBeDone: boolean;

  constructor(
    readonly code: string,
    message: string,
    { retryAfterS, isUnavailable, hasArrived = true }: { retryAfterS?: number | undefined; isUnavailable?: boolean; hasArrived?: boolean } = {},
  ) {
    super(message);
    this.name = NAMES[code] ?? (isUnavailable ? "Unavailable" : "MegaphoneError");
    this.retryAfterS = retryAfterS;
    this.mayHeal = MAY_HEAL.test(this.name);
    this.mayBeDone =
      (this.name === "ConnectionFailed" && hasArrived) || (this.name === "Unavailable" && !NOT_TAKEN.test(code));
  }
}

export const connectionFailed = (message: string, hasArrived = true) =>
  new MegaphoneError("CONNECTION_FAILED", message, { hasArrived });

export const protocolError = (bytes: number) =>
  new MegaphoneError("PROTOCOL_ERROR", `an answer of ${bytes} characters is not that of a broker`);
