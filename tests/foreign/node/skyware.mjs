// Prints what @skyware/jetstream hands on, one JSON object a line: skyware.mjs ENDPOINT [CURSOR]
import { Jetstream } from "@skyware/jetstream";
import WebSocket from "ws";

const [endpoint, cursor] = process.argv.slice(2);
const jetstream = new Jetstream({ endpoint, cursor: Number(cursor ?? 0), ws: WebSocket });

for (const kind of ["commit", "identity", "account"]) {
	jetstream.on(kind, (event) => console.log(JSON.stringify(event)));
}
jetstream.on("error", (error) => console.error(error?.message ?? error));
jetstream.start();
