// Prints what @atproto/sync hands on, one JSON object a line: sync.mjs FIREHOSE DIRECTORY
// FIREHOSE is the URL of a host without a path. What the package refuses is printed with its `error`, and the number
// up to which it has dealt with all that it has read as `cursor`.
import { IdResolver } from "@atproto/identity";
import { Firehose, MemoryRunner } from "@atproto/sync";

const [service, plcUrl] = process.argv.slice(2);
const print = (value) => console.log(JSON.stringify(value));

const firehose = new Firehose({
	service,
	idResolver: new IdResolver({ plcUrl }),
	// Without a `runner` this version sends no usable cursor.
	runner: new MemoryRunner({ startCursor: 0, setCursor: (cursor) => print({ cursor }) }),
	unauthenticatedHandles: true,
	subscriptionReconnectDelay: 10,
	heartbeatIntervalMs: 500,
	maxReconnectSeconds: 0.1,
	handleEvent: ({ event, seq, did, collection, rkey, cid }) =>
		print({ event, seq, did, collection, rkey, cid: cid?.toString() }),
	onError: ({ message, cause, event }) =>
		print({ error: `${message}: ${cause?.message ?? cause}`, seq: event?.seq }),
});
firehose.start();
