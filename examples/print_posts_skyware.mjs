// Print new posts with @skyware/jetstream, which reads the v1 wire.
// node print_posts_skyware.mjs [ENDPOINT]
// npm install @skyware/jetstream ws
import { Jetstream } from "@skyware/jetstream";
import WebSocket from "ws";

const jetstream = new Jetstream({
	endpoint: process.argv[2] ?? "ws://localhost:6008/v1/subscribe",
	wantedCollections: ["app.bsky.feed.post"],
	ws: WebSocket,
});

jetstream.onCreate("app.bsky.feed.post", ({ did, commit }) => {
	console.log(did, JSON.stringify(commit.record.text));
});
jetstream.on("error", (error) => console.error(error?.message ?? error));
jetstream.start();
