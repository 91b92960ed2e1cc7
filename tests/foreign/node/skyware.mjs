// Prints what @skyware/jetstream hands on, one JSON object a line: skyware.mjs URL CURSOR [COLLECTION…]
// A CURSOR of 0 means live.
import { Jetstream } from "@skyware/jetstream";
import WebSocket from "ws";

const [endpoint, cursor, ...collections] = process.argv.slice(2);
const options = { endpoint, wantedCollections: collections, ws: WebSocket };
const jetstream = new Jetstream({ ...options, cursor: Number(cursor) || undefined });

for (const kind of ["commit", "identity", "account"]) {
	jetstream.on(kind, (event) => console.log(JSON.stringify(event)));
}
jetstream.on("error", (error) => console.error(error?.message ?? error));
jetstream.start();
