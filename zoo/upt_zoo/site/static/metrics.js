// Reads the Prometheus text format, and what happened between two readings. Pure.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Parse a text into samples of name, labels and value. */
export function parseMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : LINE.exec(line);
    if (found)
      samples.push({ name: found[1], labels: labelsOf(found[2] ?? ""), value: Number(found[3]) });
  }
  return samples;
}

/** Sum the samples of a name that have these labels. */
export function total(samples, name, labels = {}) {
  return samples
    .filter(
      (each) =>
        each.name === name && Object.keys(labels).every((key) => each.labels[key] === labels[key]),
    )
    .reduce((sum, each) => sum + each.value, 0);
}

/** Return the values of a counter by one of its labels. */
export function byLabel(samples, name, label) {
  const sums = new Map();
  for (const each of samples) {
    if (each.name === name)
      sums.set(each.labels[label], (sums.get(each.labels[label]) ?? 0) + each.value);
  }
  return sums;
}

/** Return the mean of a histogram between two readings; null if nothing was counted. */
export function mean(before, after, name, labels = {}) {
  const counted = total(after, `${name}_count`, labels) - total(before, `${name}_count`, labels);
  const sum = total(after, `${name}_sum`, labels) - total(before, `${name}_sum`, labels);
  return counted > 0 ? sum / counted : null;
}

/** Estimate a quantile of a histogram between two readings, within its bucket; null if empty. */
export function quantile(before, after, name, share) {
  const buckets = bucketsOf(before, after, name);
  const all = buckets.at(-1)?.count ?? 0;
  if (all <= 0) return null;
  const wanted = share * all;
  const index = buckets.findIndex((each) => each.count >= wanted);
  const low = index === 0 ? { bound: 0, count: 0 } : buckets[index - 1];
  const { bound, count } = buckets[index];
  if (!Number.isFinite(bound)) return low.bound;
  return low.bound + ((bound - low.bound) * (wanted - low.count)) / (count - low.count || 1);
}

function bucketsOf(before, after, name) {
  const earlier = byLabel(before, `${name}_bucket`, "le");
  return [...byLabel(after, `${name}_bucket`, "le")]
    .map(([bound, count]) => ({
      bound: bound === "+Inf" ? Infinity : Number(bound),
      count: count - (earlier.get(bound) ?? 0),
    }))
    .sort((a, b) => a.bound - b.bound);
}

function labelsOf(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(LABEL))
    labels[name] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
  return labels;
}
