// How numbers and names are written.

const COUNT = new Intl.NumberFormat("en");
const HEADS = {
  classification: "one label",
  multi_label: "any labels",
  regression: "a number",
  span: "a span",
  token_classification: "entities",
  embedding: "an embedding",
};
const CHOICES = { classification: "one of", multi_label: "any of" };
const LABELS = 6; // shown of more
const KIBI = 1024;

export const count = (value) => COUNT.format(value);
export const percent = (share) => `${(share * 100).toFixed(share < 0.9995 ? 1 : 0)} %`;
export const score = (value) => value.toFixed(1);
export const shortDigest = (digest) => digest.replace("sha256:", "").slice(0, 12);
export const headName = (kind) => HEADS[kind] ?? kind;
export const plural = (number, noun, nouns = `${noun}s`) =>
  `${count(number)} ${number === 1 ? noun : nouns}`;

export function milliseconds(value) {
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value.toFixed(value < 10 ? 2 : 1)} ms`;
}

export function size(bytes) {
  if (bytes < KIBI * KIBI) return `${(bytes / KIBI).toFixed(0)} KiB`;
  return `${(bytes / KIBI / KIBI).toFixed(1)} MiB`;
}

export function day(time) {
  return time ? time.slice(0, 10) : "unknown";
}

/** Say what an adapter is for: its description, else what it answers with. */
export function purpose(description, kind, labels) {
  if (description) return description;
  if (!CHOICES[kind] || !labels?.length) return `Answers with ${headName(kind)}.`;
  const more = labels.length > LABELS ? ` and ${count(labels.length - LABELS)} more` : "";
  return `Answers with ${CHOICES[kind]} ${labels.slice(0, LABELS).join(", ")}${more}.`;
}

/** Cut a text at [start, end), which count code points, not the halves that JavaScript counts. */
export function cut(text, start, end) {
  const points = Array.from(text);
  return [points.slice(0, start), points.slice(start, end), points.slice(end)].map((part) =>
    part.join(""),
  );
}
