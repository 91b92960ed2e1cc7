// Print new posts without any library, in a browser or with Node 22 (20: --experimental-websocket).
// node print_posts.mjs [URL]
const url = new URL(globalThis.process?.argv[2] ?? "ws://localhost:6008/subscribe");
url.searchParams.append("wantedCollections", "app.bsky.feed.post");

function connect() {
	const socket = new WebSocket(url);
	socket.onmessage = ({ data }) => {
		const event = JSON.parse(data);
		// Where to resume after a lost connection, so that no event is lost or repeated.
		url.searchParams.set("cursor", event.time_us + 1);
		const text = event.commit?.record?.text;
		if (text !== undefined) console.log(event.did, JSON.stringify(text));
	};
	socket.onclose = () => setTimeout(connect, 1000 * Math.random() * 10);
	socket.onerror = () => console.error(`cannot reach ${url.origin}, trying again`);
}

connect();
