// Print new posts with @atcute/jetstream. It always connects to /subscribe, so run the server with --wire v1.
// node print_posts_atcute.mjs [URL]
// npm install @atcute/jetstream ws
import { JetstreamSubscription } from "@atcute/jetstream";
import WebSocket from "ws";

const subscription = new JetstreamSubscription({
	url: process.argv[2] ?? "ws://localhost:6008",
	wantedCollections: ["app.bsky.feed.post"],
	ws: { WebSocket },
});

for await (const event of subscription) {
	if (event.kind === "commit" && event.commit.operation === "create") {
		console.log(event.did, JSON.stringify(event.commit.record.text));
	}
}
