// The three wires: how a subscription is asked for, and what a message says. docs/api.md describes them.

const V2_PATH = "xrpc/network.bsky.jetstream.subscribeEvents";
const WANTED = { collections: "wantedCollections", dids: "wantedDids" };
const ALL_BUT_SYNC = ["commit", "identity", "account"];
const KINDS = { com: "commit", id: "identity", acc: "account" };
const OPERATIONS = { c: "create", u: "update", d: "delete" };

/** The names of what differs between the endpoints. */
export const WIRES = {
  classic: { path: "subscribe", names: WANTED, kinds: ALL_BUT_SYNC },
  v1: { path: "v1/subscribe", names: WANTED, kinds: ALL_BUT_SYNC },
  v2: { path: V2_PATH, names: { collections: "collections", dids: "dids" }, kinds: [...ALL_BUT_SYNC, "sync"] },
};

/** Return what a message says: `position`, and `event` in one shape for all wires; null if it is no event. */
export function read(text) {
  const message = JSON.parse(text);
  return message.$type === "message" ? readV2(message.payload) : readV1(message);
}

function readV1(message) {
  const kind = KINDS[message.type] ?? message.kind;
  const position = message.time_us;
  const part = message[kind];
  if (!part) return { position, event: null };
  const action = kind === "commit" ? (OPERATIONS[part.type] ?? part.operation) : kind;
  return { position, event: { kind, action, did: message.did, position, part, ...pathOf(part) } };
}

function readV2(payload) {
  const kind = payload.$type.split("#")[1];
  if (kind === "info") return { position: positionOf(payload), event: null };
  const part = kind === "commit" ? payload : payload[kind];
  const action = kind === "commit" ? payload.operation : kind;
  return { position: payload.seq, event: { kind, action, did: payload.did, position: payload.seq, part, ...pathOf(part) } };
}

function pathOf({ collection, rkey, rev, cid, record }) {
  return { collection, rkey, rev, cid, record };
}

/** Return the position in a heartbeat of the v2 wire, which is a sentence. */
function positionOf({ name, message }) {
  return name === "Heartbeat" ? Number(/\d+/.exec(message)?.[0]) : undefined;
}

/** Tell from its first characters whether a message may be an event: others are few, and never counted. */
export function isEvent(text) {
  return text.startsWith('{"did":') || (text.startsWith('{"$type":"message"') && !text.includes('#info"'));
}

/** Return what a person wants to read of an event, in one line. */
export function summary(event) {
  const { kind, part, record } = event;
  if (kind === "identity") return part.handle ?? "";
  if (kind === "account") return part.active ? "active" : `not active${part.status ? `: ${part.status}` : ""}`;
  if (kind === "sync") return part.rev ?? "";
  if (!record) return event.rkey ?? "";
  return oneLine(sentence(record));
}

function sentence(record) {
  const { subject } = record;
  const uri = typeof subject === "string" ? subject : subject?.uri;
  for (const each of [record.text, record.displayName, record.name, record.title, uri, record.description]) {
    if (typeof each === "string" && each.trim()) return each;
  }
  return JSON.stringify(record);
}

const oneLine = (text) => text.slice(0, 300).replace(/\s+/gu, " ").trim();
