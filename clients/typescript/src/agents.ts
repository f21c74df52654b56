/** Return the name of the agent that has the channel of an address. A proxy finds the node by it. */
export const agentOf = (address: string) => address.split(".", 1)[0]!;

/** Return addresses by their agents. */
export function byAgent(addresses: Iterable<string>): string[][] {
  const groups = new Map<string, string[]>();
  for (const address of new Set(addresses)) {
    const agent = agentOf(address);
    groups.set(agent, [...(groups.get(agent) ?? []), address]);
  }
  return [...groups.values()];
}
