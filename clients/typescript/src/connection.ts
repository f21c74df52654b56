import { MegaphoneError, connectionFailed, protocolError } from "./errors.js";
import type { Http, Request } from "./http.js";
import type { Line } from "./read.js";

const SILENT_HEARTBEATS = 2.5;

/** What to ask for, and who takes the answer. */
export interface Asked {
  path: string;
  request?: Request;
  /** After 2.5 times as long without a byte, the connection is cut. */
  beatMs: number;
  /** The answer begins. */
  opened(headers: Headers): void;
  /** A line came, in any number of pieces. One without anything is a heartbeat. */
  take(line?: Line): void;
}

/**
 * Ask for a read, and take the answer until it ends in order. Throws a MegaphoneError, also after a
 * long silence, and when it is aborted. In the end, it is aborted in any case.
 */
export async function connect(http: Http, abort: AbortController, { path, request, beatMs, opened, take }: Asked): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let rest = "";
  const beat = () => {
    clearTimeout(timer);
    timer = setTimeout(() => abort.abort(), SILENT_HEARTBEATS * beatMs);
  };
  const understand = (text: string) => {
    const lines = text.split("\n");
    lines[0] = rest + lines[0];
    rest = lines.pop()!;
    for (const line of lines) take(parsed(line));
  };
  const { signal } = abort;
  const run = async () => {
    const response = await http.open(path, { ...request, signal });
    signal.throwIfAborted();
    opened(response.headers);
    if ((http.polls ||= !response.body)) return understand(await response.text());
    const decoder = new TextDecoder();
    for (const reader = response.body!.getReader(); ; ) {
      const { done, value } = await reader.read();
      signal.throwIfAborted();
      if (done) return;
      beat();
      understand(decoder.decode(value, { stream: true }));
    }
  };
  try {
    beat();
    // Not every runtime ends what is under way for each signal.
    await Promise.race([run(), new Promise((_, reject) => signal.addEventListener("abort", reject))]);
  } catch (error) {
    throw error instanceof MegaphoneError ? error : connectionFailed(error);
  } finally {
    clearTimeout(timer);
    abort.abort();
  }
}

/** Understand a line. Bytes that are no text are no JSON either, except within a string. */
function parsed(text: string): Line | undefined {
  if (!text.trim()) return;
  try {
    const line = JSON.parse(text);
    if (line.eid || line.channel != null) return { ...line, length: text.length };
  } catch {}
  throw protocolError(text.length);
}
