// A subscriber's own NATS client: "nats", one package, and those it was split into.
import { jetstream } from "@nats-io/jetstream";
import * as split from "@nats-io/transport-node";
import * as whole from "nats";
import { answer, tell } from "./calls.js";

const libraries = {
  nats: { ...whole, jetstream: (nc) => nc.jetstream() },
  "@nats-io": { ...split, jetstream },
};
const encoder = new TextEncoder();
const inHand = new Map(); // messages by their sequence in the stream
let nc, js, consumer, consuming;

function took(m) {
  inHand.set(m.seq, m);
  const headers = Object.fromEntries([...m.headers.keys()].map((name) => [name, m.headers.get(name)]));
  return { seq: m.seq, redelivered: m.redelivered, count: m.info.deliveryCount ?? m.info.redeliveryCount, headers, data: m.string() };
}

answer({
  connect: async (library, { servers, seed, inboxPrefix }) => {
    const { connect, nkeyAuthenticator, jetstream } = libraries[library];
    const authenticator = nkeyAuthenticator(encoder.encode(seed));
    nc = await connect({ servers, inboxPrefix, authenticator, tls: {}, reconnectTimeWait: 100, maxReconnectAttempts: -1 });
    js = jetstream(nc);
  },
  consumer: async (...names) => {
    consumer = await js.consumers.get(...names);
  },
  fetch: async (n) => {
    const list = [];
    for await (const m of await consumer.fetch({ max_messages: n, expires: 5000 })) {
      list.push(took(m));
    }
    return list;
  },
  consume: async () => {
    consuming = await consumer.consume();
    (async () => {
      for await (const m of consuming) {
        tell(took(m));
      }
    })();
  },
  end: (seq, how, ...args) => inHand.get(seq)[how](...args),
  publish: async (subject, data) => {
    await nc.request(subject, encoder.encode(data), { timeout: 2000 });
  },
  close: async () => {
    await consuming?.close();
    await nc.drain();
  },
});
