// The frame around the views: which one the address names, the theme, the token.

import { canSendToken, getJson, hasToken, keepToken, onTokenNeeded } from "./api.js";
import { showAdapter } from "./adapter.js";
import { showCatalogue } from "./catalogue.js";
import { announce, h, show } from "./dom.js";
import { showLive } from "./live.js";
import { showPlayground } from "./playground.js";

const VIEWS = [
  { path: "", name: "Catalogue", view: showCatalogue },
  { path: "try", name: "Playground", view: showPlayground },
  { path: "live", name: "Live", view: showLive },
];

const main = document.getElementById("main");
let close = () => {};

/** Read `#/path/to?key=value`. */
function readAddress() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/"), query: new URLSearchParams(query) };
}

async function route(setup) {
  const { path, query } = readAddress();
  const view = VIEWS.find((each) => each.path === path[0])?.view ?? showCatalogue;
  close();
  const asked = new AbortController();
  close = () => asked.abort();
  markCurrent(path[0] === "adapters" ? "" : path[0]);
  const page = h("div", { class: "view" });
  show(main, page);
  const context = { setup, query, path: path.slice(1), signal: asked.signal };
  try {
    await (path[0] === "adapters" ? showAdapter : view)(page, context);
  } catch (error) {
    showError(page, error);
  }
  const heading = page.querySelector("h1");
  if (asked.signal.aborted || !heading) return;
  document.title = `${heading.textContent} · upt`;
  announce(heading.textContent);
}

function showError(page, error) {
  const again = h(
    "button",
    { click: () => window.dispatchEvent(new Event("hashchange")) },
    "Try again",
  );
  show(
    page,
    h("h1", {}, "This cannot be shown"),
    h("p", { class: "error", role: "alert" }, error.message),
    again,
  );
  if (error.code === undefined) throw error;
}

function markCurrent(current) {
  for (const link of document.querySelectorAll("#views a")) {
    const isCurrent = link.dataset.path === current;
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function makeViews(setup) {
  const shown = setup.is_live ? VIEWS : VIEWS.slice(0, 1);
  return shown.map(({ path, name }) => h("a", { href: `#/${path}`, "data-path": path }, name));
}

function makeThemeButton() {
  const root = document.documentElement;
  const isDark = () =>
    getComputedStyle(root).colorScheme === "dark" ||
    (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  const turn = () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
    announceTheme();
  };
  return h("button", { class: "quiet", id: "theme", click: turn }, "Light / dark");
}

/** Tell those who draw in colours of their own. */
function announceTheme() {
  document.dispatchEvent(new Event("themechange"));
}

function makeTokenButton() {
  const label = () => (hasToken() ? "Forget the token" : "Give a token");
  const press = async () => {
    if (hasToken()) keepToken(null);
    else keepToken(await askForToken(""));
    window.dispatchEvent(new Event("hashchange"));
  };
  const button = h("button", { class: "quiet", id: "token", click: press }, label());
  document.addEventListener("tokenchange", () => show(button, label()));
  return button;
}

/** Ask the reader; resolves to null where none is given. */
function askForToken(why) {
  const field = h("input", {
    type: "password",
    id: "token-field",
    autocomplete: "off",
    required: true,
    pattern: "\\s*[!-~]+\\s*", // all that fits into a header
    title: "One token, as upt-server token create prints it",
    spellcheck: "false",
  });
  const cancel = h(
    "button",
    { type: "button", class: "quiet", click: () => dialog.close() },
    "Cancel",
  );
  const form = h(
    "form",
    {
      method: "dialog",
      submit: (event) => {
        event.preventDefault();
        dialog.close(field.value.trim());
      },
    },
    h("h2", { id: "token-title" }, "This server asks who you are"),
    h(
      "p",
      { class: why ? "error" : "muted" },
      why || "Give a token that its operator has made for you.",
    ),
    h("label", { for: "token-field" }, "Token"),
    field,
    h(
      "p",
      { class: "muted small" },
      "It is kept in this page's memory until the page is closed, and nowhere else.",
    ),
    h("div", { class: "row end" }, cancel, h("button", { class: "primary" }, "Use it")),
  );
  const dialog = h("dialog", { "aria-labelledby": "token-title" }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue || null);
    });
  });
}

/** Ask once, however many calls need it. */
function asksOnce() {
  let asking = null;
  return (why) => {
    asking ??= askForToken(why).finally(() => {
      asking = null;
    });
    return asking;
  };
}

async function start() {
  onTokenNeeded(asksOnce());
  const setup = await getJson("setup.json");
  show(document.getElementById("views"), makeViews(setup));
  show(
    document.getElementById("tools"),
    setup.needs_token && canSendToken() ? makeTokenButton() : null,
    makeThemeButton(),
  );
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is the view's
    main.focus();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", announceTheme);
  window.addEventListener("hashchange", () => {
    route(setup).then(() => main.focus({ preventScroll: true }));
    window.scrollTo(0, 0);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, textarea, select")) return;
    const search = document.getElementById("search");
    if (search) {
      event.preventDefault();
      search.focus();
    }
  });
  await route(setup);
}

start().catch((error) => showError(main, error));
