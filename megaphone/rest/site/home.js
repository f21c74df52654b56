// Asks whether the node is well, creates a channel, reads it, and writes to it.
"use strict";

const SHOWN = 100;
const element = (id) => document.getElementById(id);

let channel; // the answer of /create
let source; // reads it

async function call(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(`${body.code}: ${body.message}`);
  return body;
}

function post(path, body) {
  return call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
}

// Shows why something did not work.
async function attempt(work) {
  element("problem").textContent = "";
  try {
    await work();
  } catch (error) {
    element("problem").textContent = error.message;
  }
}

async function showHealth() {
  const health = element("health");
  try {
    await call("readyz");
    await call("readyz/create");
    health.textContent = "This node is well, and takes new channels.";
    health.className = "good";
  } catch (error) {
    health.textContent = `This node is not well: ${error.message}`;
    health.className = "bad";
  }
}

async function create() {
  channel = await call("create", { method: "POST" });
  element("consumer").textContent = channel.consumerAddress;
  element("producer").textContent = channel.producerAddress;
  const url = new URL(`write/${channel.producerAddress}/greetings`, location.href);
  element("command").textContent =
    `curl '${url}' -H 'Content-Type: application/json' -d '{"hello": "from a terminal"}'`;
  element("events").replaceChildren();
  element("channel").hidden = false;
  read();
}

function read() {
  source?.close();
  source = new EventSource(`read/${channel.consumerAddress}`);
  source.onopen = () => showState("open");
  source.onmessage = ({ data }) => showEvent(JSON.parse(data));
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) attempt(showWhyItClosed);
    else showState("connecting");
  };
}

async function showWhyItClosed() {
  showState("closed");
  const address = channel.consumerAddress;
  const { channels } = await post("channelsExists", JSON.stringify({ channels: [address] }));
  showState(
    channels[address]
      ? "closed, because the channel has another reader"
      : "closed, because the channel has gone; create another one",
  );
}

function showState(text) {
  element("state").textContent = text;
}

function showEvent({ sid, ts, body }) {
  const item = document.createElement("li");
  const stream = document.createElement("b");
  stream.textContent = sid;
  item.append(stream, JSON.stringify(body));
  item.title = ts;
  const events = element("events");
  events.prepend(item);
  if (events.children.length > SHOWN) events.lastElementChild.remove();
}

async function write() {
  const stream = encodeURIComponent(element("stream").value);
  await post(`write/${channel.producerAddress}/${stream}`, element("body").value);
}

element("create").onclick = () => attempt(create);
element("write").onsubmit = (event) => {
  event.preventDefault();
  attempt(write);
};
window.onpagehide = () => source?.close(); // a page in the cache of the browser would go on reading
window.onpageshow = (event) => event.persisted && channel && read();
document.onvisibilitychange = () => document.hidden || showHealth();
showHealth();
