// A subscriber: an HTTP server that reads each delivery with the library that its
// path names, tells what that made of it, and agrees.
import { createServer } from "node:http";
import { EventGridDeserializer } from "@azure/eventgrid";
import { HTTP } from "cloudevents";
import { Webhook } from "standardwebhooks";
import { answer, fault, tell } from "./calls.js";

const deserializer = new EventGridDeserializer();
const keys = new Map(); // of the paths that verify

const readers = {
  // Bodies that are text go to the library as text, as from Express's parsers.
  cloudevents: (headers, body) => HTTP.toEvent({ headers, body: /json|^text/.test(headers["content-type"]) ? body.toString() : body }),
  eventgrid: (_, body) => deserializer.deserializeEventGridEvents(body.toString()),
  gridcloud: (_, body) => deserializer.deserializeCloudEvents(body.toString()),
  signed: (headers, body) => verified(headers, body),
};

// verified tells for each key whether it has signed, and whether another body passes.
function verified(headers, body) {
  const verify = (key, text) => {
    try {
      return { value: new Webhook(key).verify(text, headers) };
    } catch (e) {
      return { error: fault(e) };
    }
  };
  return Object.fromEntries(
    [...keys].map(([name, key]) => [name, { same: verify(key, body), changed: verify(key, Buffer.from(body.toString().replace("{", "{ "))) }]),
  );
}

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) {
    chunks.push(chunk);
  }
  const body = Buffer.concat(chunks);
  const [, library, subscriber] = request.url.split("/");
  const delivery = { subscriber, headers: request.headers };
  try {
    delivery.value = await readers[library](request.headers, body);
  } catch (e) {
    delivery.error = fault(e);
  }
  tell(delivery);
  response.writeHead(204).end();
});

answer({
  listen: () => new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(`http://127.0.0.1:${server.address().port}`))),
  key: (name, key) => void keys.set(name, key),
});
