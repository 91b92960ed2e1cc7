// The page: figures that are asked for every few seconds, and the viewer.

import { begin, setState, showStatus } from "./figures.js";
import { byId, setText, show } from "./dom.js";
import { clockTime } from "./format.js";
import { Poller } from "./status.js";
import { TokenForm } from "./token.js";
import { Viewer } from "./viewer.js";

let ahead = 0; // microseconds by which the server's clock is ahead of ours, by the last status
let seenAt = null; // when that came

const tokenForm = new TokenForm(() => {
  poller.now();
  viewer.useToken();
});
const viewer = new Viewer(() => Math.round(Date.now() * 1000 + ahead), (text) => tokenForm.show(`Viewer: ${text}`));

function onStatus(status) {
  ahead = status.now_us - Date.now() * 1000;
  seenAt = Date.now() * 1000;
  show(byId("silence"), false);
  byId("figures").classList.remove("stale");
  showStatus(status);
  show(byId("viewer"), status.role !== "ingest");
  viewer.suggest(status.events.by_collection.map((each) => each.collection));
}

function onSilence(text, backoffMs) {
  setState("no answer", "bad");
  byId("figures").classList.add("stale");
  const figures = seenAt === null ? "" : `The figures are of ${clockTime(seenAt)}. `;
  setText(byId("silence-text"), `${text && `It says ${text} `}${figures}Next try in ${Math.round(backoffMs / 1000)} s.`);
  show(byId("silence"), true);
}

function onRefused(text) {
  setState("needs a token", "warning");
  show(byId("silence"), false);
  tokenForm.show(`Figures: ${text}`);
}

begin();
const poller = new Poller({ onStatus, onSilence, onRefused });
byId("try-now").addEventListener("click", () => poller.now());
poller.now();
