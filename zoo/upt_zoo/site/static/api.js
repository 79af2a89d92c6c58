// Asks the server, or the files of a static page. The token is kept in memory and nowhere else.

const UNAUTHENTICATED = 401;
const IN_THE_CLEAR = "A token leaves this machine by TLS only: open the page by https.";

let token = null;
let askForToken = async () => null;

/** An answer that is none: what was asked for failed, and `message` says why. */
export class CallFailed extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/** Take the function that asks the reader for a token, and is told why. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

/** Keep a token until the page is closed; null forgets it. */
export function keepToken(value) {
  token = value;
  document.dispatchEvent(new Event("tokenchange"));
}

/** Tell whether there is a token. */
export function hasToken() {
  return token !== null;
}

/** Tell whether a token stays secret on its way: by TLS, or to this machine. */
export function canSendToken() {
  return window.isSecureContext;
}

export async function getJson(path) {
  return (await call(path)).json();
}

export async function getText(path) {
  return (await call(path)).text();
}

export async function postJson(path, body) {
  const sent = { method: "POST", body: JSON.stringify(body) };
  return (await call(path, { ...sent, headers: { "content-type": "application/json" } })).json();
}

async function call(path, options = {}) {
  const response = await send(path, options);
  if (response.ok) return response;
  const message = await messageOf(response);
  if (response.status === UNAUTHENTICATED) {
    if (!canSendToken()) throw new CallFailed(`${message}. ${IN_THE_CLEAR}`, response.status);
    const given = await askForToken(hasToken() ? "The server does not know this token." : "");
    if (given) {
      keepToken(given);
      return call(path, options);
    }
  }
  throw new CallFailed(message, response.status);
}

async function send(path, options) {
  const identity = token === null ? {} : { authorization: `Bearer ${token}` };
  try {
    return await fetch(path, { ...options, headers: { ...options.headers, ...identity } });
  } catch {
    throw new CallFailed("The server does not answer.", 0);
  }
}

async function messageOf(response) {
  try {
    const { error } = await response.json();
    return `${error.status}: ${error.message}`;
  } catch {
    return `The server answered with code ${response.status}.`;
  }
}
