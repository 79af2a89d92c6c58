// Texts to begin with, all written for this page.

export const SAMPLES = [
  {
    name: "A film review",
    texts: ["A gripping, funny film with a heart, and not a minute too long.", ""],
  },
  {
    name: "A question about a paragraph",
    texts: [
      "Who designed the lighthouse?",
      "The lighthouse on the northern cape was designed by Maria Lindqvist in 1894 and took three " +
        "winters to build. Its lamp can be seen from thirty kilometres away, and the keeper's " +
        "house beside it holds a small museum today.",
    ],
  },
  {
    name: "Two sentences",
    texts: [
      "The company said profits rose by a tenth in the third quarter.",
      "Third-quarter profits at the company went up ten percent, it said.",
    ],
  },
  {
    name: "A line of science",
    texts: [
      "We extend the parser of earlier work with a memory, and measure it on two corpora.",
      "",
    ],
  },
];

/** Give texts for an adapter of so many fields. */
export function sampleFor(adapter) {
  if (adapter.example) return adapter.example;
  const fields = adapter.task?.fields ?? adapter.fields;
  const isSpan = (adapter.head?.kind ?? adapter.head) === "span";
  const sample = isSpan ? SAMPLES[1] : fields.length === 2 ? SAMPLES[2] : SAMPLES[0];
  return sample.texts.slice(0, fields.length);
}
