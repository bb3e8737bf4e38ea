// Senders: the publisher of Event Grid topics, and the emitter of CloudEvents.
import { AzureKeyCredential, AzureSASCredential, EventGridPublisherClient, generateSharedAccessSignature } from "@azure/eventgrid";
import { CloudEvent, Mode, emitterFor, httpTransport } from "cloudevents";
import { answer } from "./calls.js";

const dates = (event) => ({
  ...event,
  ...(event.time && { time: new Date(event.time) }),
  ...(event.eventTime && { eventTime: new Date(event.eventTime) }),
  ...(event.bytes && { bytes: undefined, data: Buffer.from(event.bytes, "base64") }),
});

answer({
  grid: ({ endpoint, schema, key }, events) =>
    new EventGridPublisherClient(endpoint, schema, new AzureKeyCredential(key)).send(schema === "Custom" ? events : events.map(dates)),
  signed: async ({ endpoint, schema, key, until }, events) => {
    const signature = await generateSharedAccessSignature(endpoint, new AzureKeyCredential(key), new Date(until));
    await new EventGridPublisherClient(endpoint, schema, new AzureSASCredential(signature)).send(events.map(dates));
  },
  // The emitter shows no status, only the answer's body.
  emit: ({ sink, mode, headers }, event) => {
    const { bytes, ...rest } = event;
    const data = bytes ? new Uint8Array(Buffer.from(bytes, "base64")) : event.data;
    return emitterFor(httpTransport(sink), { mode: Mode[mode] })(new CloudEvent({ ...rest, data }), { headers });
  },
});
