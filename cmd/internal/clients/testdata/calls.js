// Answers the calls that come on standard input, one in JSON a line, until its end:
// {"id":1,"call":"receive","args":[…]} by {"id":1,"value":…} or {"id":1,"error":…}.
import { createInterface } from "node:readline";

// The cloudevents library puts another JSON into the place of this one.
const { parse, stringify } = JSON;

const plain = (_, v) => (typeof v === "bigint" ? `${v}n` : v);

function print(line) {
  process.stdout.write(stringify(line, plain) + "\n");
}

// tell says what nobody has called for.
export function tell(event) {
  print({ event });
}

// fault is what a program sees of an error.
export function fault(e) {
  return { name: e.name, message: e.message, code: e.code, statusCode: e.statusCode };
}

export function answer(calls) {
  createInterface({ input: process.stdin })
    .on("line", async (line) => {
      const { id, call, args } = parse(line);
      try {
        print({ id, value: (await calls[call](...args)) ?? null });
      } catch (e) {
        print({ id, error: fault(e) });
      }
    })
    .on("close", () => process.exit(0));
}
