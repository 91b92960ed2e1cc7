// Prints what @atcute/jetstream hands on, one JSON object a line: atcute.mjs URL CURSOR [COLLECTION…]
// A CURSOR of 0 means live.
import { JetstreamSubscription } from "@atcute/jetstream";
import WebSocket from "ws";

const [url, cursor, ...collections] = process.argv.slice(2);
const subscription = new JetstreamSubscription({
	url,
	cursor: Number(cursor) || undefined,
	wantedCollections: collections,
	ws: { WebSocket, minReconnectionDelay: 100 },
	onConnectionError: (event) => console.error(event.message),
	onError: (error) => {
		console.error("not a valid event:", JSON.stringify(error.issues));
		process.exit(1);
	},
});

for await (const event of subscription) {
	console.log(JSON.stringify(event));
}
