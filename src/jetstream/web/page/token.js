// The token of the user, where the server asks for one. It is kept for this tab, until that is closed.

import { byId, setText, show } from "./dom.js";

const KEY = "token";

/** Return the token; empty without one. */
export const token = () => sessionStorage.getItem(KEY) ?? "";

/** Fetch from this server, with the token if there is one. */
export function ask(url, options = {}) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  return fetch(url, { cache: "no-store", headers, ...options });
}

/** Return the token as parameters of a WebSocket, which a browser gives no header fields. */
export const parameters = () => (token() ? [["access_token", token()]] : []);

/** The form for a token. `onToken` is called when one was entered. */
export class TokenForm {
  constructor(onToken) {
    this.form = byId("token");
    this.field = byId("token-field");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.field.value.trim()) return;
      sessionStorage.setItem(KEY, this.field.value.trim());
      this.field.value = "";
      this.hide();
      onToken();
    });
  }

  /** Ask for a token, with the sentence of the server. */
  show(text) {
    setText(byId("token-text"), text);
    show(this.form, true);
  }

  hide() {
    show(this.form, false);
  }
}
