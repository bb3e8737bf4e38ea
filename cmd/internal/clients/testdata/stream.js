// Readers of server-sent events.
import { EventSource } from "eventsource";
import { answer, tell } from "./calls.js";

const sources = new Map();

answer({
  open: (name, url, headers) => {
    const withHeaders = (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...headers } });
    const source = new EventSource(url, headers && { fetch: withHeaders });
    source.onopen = () => tell({ name, kind: "open" });
    source.onmessage = (m) => tell({ name, kind: "message", id: m.lastEventId, data: m.data });
    source.onerror = (e) => tell({ name, kind: "error", code: e.code ?? 0, closed: source.readyState === EventSource.CLOSED });
    sources.set(name, source);
  },
  close: (name) => sources.get(name).close(),
});
