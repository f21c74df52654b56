// The driver of the TypeScript client under Node: node tests/clients/drivers/node.js [polls]

import { createInterface } from "node:readline";
import { Megaphone } from "../../../clients/typescript/dist/index.js";
import { Driver } from "./javascript.js";

const report = (told) => process.stdout.write(JSON.stringify(told) + "\n");
const driver = new Driver(Megaphone, report, { polls: process.argv[2] === "polls" });
report({ is: "ready" });
const running = new Set();
for await (const line of createInterface({ input: process.stdin })) {
  const one = driver.carryOut(JSON.parse(line)).finally(() => running.delete(one));
  running.add(one);
}
await driver.close();
await Promise.all(running);
