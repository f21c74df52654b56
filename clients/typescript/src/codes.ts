import { MegaphoneError } from "./errors.js";

/** The statuses of the codes that another try may heal. */
const STATUSES: [status: number, codes: RegExp][] = [
  [408, /^TOO_SLOW$/],
  [421, /^MOVED$/],
  [429, /^(LIMIT_EXCEEDED|RATE_LIMITED)$/],
  [503, /^(TIMEOUT|SKIPPED|NO_AGENT|SHUTTING_DOWN|INTERNAL_SERVER_ERROR|.+_UNAVAILABLE)$/],
];

/** The classes of the Python client that have another name than the code, and that only writes get. */
const NAMES: Record<string, string> = { UNSUPPORTED_MEDIA_TYPE: "BadRequest", TIMEOUT: "WriteTimeout", SKIPPED: "WriteTimeout" };

/** Give the error of a write its name. */
export function named(error: MegaphoneError): MegaphoneError {
  error.name = NAMES[error.code] ?? error.name;
  return error;
}

/** Return the error of a code that came without a status of its own, in an answer that is for many. */
export function errorOf(code: string, message: string, retryAfterS?: number, unknownStatus = 400): MegaphoneError {
  const [status = unknownStatus] = STATUSES.find(([, codes]) => codes.test(code)) ?? [];
  return named(new MegaphoneError(code, message, status, retryAfterS));
}
