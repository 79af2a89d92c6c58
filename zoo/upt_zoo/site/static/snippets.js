// How to ask an adapter from elsewhere, with this server's own addresses.

import { h, show } from "./dom.js";
import { sampleFor } from "./samples.js";

const GRPC_PORT = 8001;
const LANGUAGES = { Python: inPython, curl: byCurl, grpcurl: byGrpcurl, tritonclient: byTriton };

/** Make tabs with the same call in several languages. */
export function makeSnippets(adapter, setup) {
  const texts = sampleFor(adapter);
  const server = serverOf(setup);
  const names = Object.keys(LANGUAGES);
  const code = h("code", {});
  const panel = h(
    "pre",
    { id: "snippet", role: "tabpanel", tabindex: "0", "aria-labelledby": "tab-Python" },
    code,
  );
  const tabs = names.map((name) =>
    h(
      "button",
      { role: "tab", id: `tab-${name}`, "aria-controls": "snippet", click: () => choose(name) },
      name,
    ),
  );
  const choose = (chosen) => {
    show(code, LANGUAGES[chosen](adapter, texts, server));
    panel.setAttribute("aria-labelledby", `tab-${chosen}`);
    names.forEach((name, index) => {
      tabs[index].setAttribute("aria-selected", String(name === chosen));
      tabs[index].tabIndex = name === chosen ? 0 : -1;
    });
  };
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    choose(names[next]);
    tabs[next].focus();
  };
  choose(names[0]);
  return h(
    "div",
    { class: "snippets" },
    h(
      "div",
      { class: "row" },
      h("div", { role: "tablist", "aria-label": "Languages", keydown: move }, tabs),
      navigator.clipboard ? makeCopyButton(code) : null, // which pages without TLS lack
    ),
    panel,
  );
}

function makeCopyButton(code) {
  const copy = async (event) => {
    await navigator.clipboard.writeText(code.textContent);
    show(event.target, "Copied");
  };
  return h("button", { class: "quiet", click: copy }, "Copy");
}

function serverOf(setup) {
  const host = setup.is_live ? location.hostname : "127.0.0.1";
  return {
    grpc: `${host}:${setup.grpc_port || GRPC_PORT}`,
    http: setup.is_live ? location.origin : "http://127.0.0.1:8000",
    isEncrypted: setup.is_live && location.protocol === "https:",
    needsToken: setup.needs_token,
  };
}

function inPython({ name, version }, texts, server) {
  const more = [
    server.isEncrypted ? ", tls=ClientTls()" : "",
    server.needsToken ? ", token=token" : "",
  ].join("");
  const tls = server.isEncrypted ? "\nfrom upt_server.tls import ClientTls" : "";
  return `from upt_server.client import Client${tls}

with Client("${server.grpc}"${more}) as client:
    output = client.predict(
        ${[`${name}:${version}`, ...texts].map(quoted).join(",\n        ")},
    )
print(output.answer, output.adapter.digest)`;
}

function byCurl({ name, version }, texts, server) {
  return `curl -s ${server.http}/v1/predict ${header("-H", server)}-d ${inShell(bodyOf(name, version, texts))}`;
}

function byGrpcurl({ name, version }, texts, server) {
  const plain = server.isEncrypted ? "" : "-plaintext ";
  return `grpcurl ${plain}${header("-H", server)}-d ${inShell(bodyOf(name, version, texts))} \\
  ${server.grpc} upt.v1.Inference/Predict`;
}

function byTriton({ name, version, task }, texts, server) {
  const inputs = texts
    .map((text, index) => `    (${quoted(task.fields[index])}, ${quoted(text)}),`)
    .join("\n");
  const headers = server.needsToken ? ', headers={"authorization": f"Bearer {token}"}' : "";
  return `import numpy as np
import tritonclient.grpc as triton

fields = [
${inputs}
]
inputs = []
for field, text in fields:
    inputs.append(triton.InferInput(field, [1], "BYTES"))
    inputs[-1].set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
client = triton.InferenceServerClient("${server.grpc}"${server.isEncrypted ? ", ssl=True" : ""})
result = client.infer("${name}", inputs, model_version="${version}"${headers})
print({output.name: result.as_numpy(output.name) for output in result.get_response().outputs})`;
}

function bodyOf(name, version, texts) {
  return JSON.stringify({ inputs: [{ adapter: `${name}:${version}`, texts }] });
}

function header(option, server) {
  return server.needsToken ? `${option} "authorization: Bearer $TOKEN" ` : "";
}

function quoted(text) {
  return JSON.stringify(text);
}

function inShell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
