/** Gathers pieces until they are whole lines. A line may have any length, and any number of pieces. */
export class Splitter {
  #rest = "";
  readonly #decoder = new TextDecoder("utf-8", { fatal: true });

  /** Return the lines that are whole now. Throws a TypeError, if they are not UTF-8. */
  push(piece: Uint8Array): string[] {
    const text = this.#decoder.decode(piece, { stream: true });
    const end = text.lastIndexOf("\n");
    if (end < 0) {
      this.#rest += text;
      return [];
    }
    const lines = (this.#rest + text.slice(0, end)).split("\n");
    this.#rest = text.slice(end + 1);
    return lines;
  }
}
