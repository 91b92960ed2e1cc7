// Prints what an EventSource hands on, one JSON object a line: eventsource.mjs URL CURSOR [COLLECTION…]
// A CURSOR of 0 means live. The package follows the HTML standard, as the EventSource of browsers does.
import { EventSource } from "eventsource";

const [url, cursor, ...collections] = process.argv.slice(2);
const target = new URL(url.replace(/^ws/, "http"));
if (Number(cursor)) target.searchParams.set("cursor", cursor);
for (const collection of collections) target.searchParams.append("wantedCollections", collection);

const events = new EventSource(target);
events.onmessage = ({ data, lastEventId }) => {
	const event = JSON.parse(data);
	if (String(event.time_us) !== lastEventId) throw new Error(`${event.time_us} has the ID ${lastEventId}`);
	console.log(JSON.stringify(event));
};
events.addEventListener("close", ({ data }) => {
	const { code, reason } = JSON.parse(data);
	if (code !== 1001) throw new Error(reason);
});
events.onerror = (error) => console.error(error.code, error.message);
