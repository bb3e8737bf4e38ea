// The client of Event Grid namespaces, both ways: its methods by their names.
import { AzureKeyCredential, EventGridReceiverClient, EventGridSenderClient } from "@azure/eventgrid-namespaces";
import { answer } from "./calls.js";

const receivers = new Map();
const senders = new Map();

// once keeps what was made under a name.
function once(map, name, make) {
  if (!map.has(name)) {
    map.set(name, make());
  }
  return map.get(name);
}

answer({
  receiver: ({ endpoint, subscription, key }, method, ...args) =>
    once(receivers, subscription + key, () => new EventGridReceiverClient(endpoint, new AzureKeyCredential(key), "events", subscription))[method](...args),
  sender: ({ endpoint, topic, key }, events) =>
    once(senders, topic + key, () => new EventGridSenderClient(endpoint, new AzureKeyCredential(key), topic)).sendEvents(dates(events)),
});

function dates(events) {
  return Array.isArray(events) ? events.map(dates) : { ...events, time: events.time && new Date(events.time) };
}
