// Lines over time or epochs, drawn by uPlot, which is fetched when the first one is drawn.

import { h } from "./dom.js";

const HEIGHT = 170;
// whole epochs between two ticks: 1, 2, 5, 10, 20, ...
const POWERS = Array.from({ length: 9 }, (_, power) => 10 ** power);
const EPOCHS = { incrs: POWERS.flatMap((power) => [power, 2 * power, 5 * power]) };
const CLOCK = {
  space: 90,
  values: (_, times) => times.map((time) => new Date(time * 1000).toLocaleTimeString("en-GB")),
};
let library = null;

/** Draw lines in the colours of the theme; returns what takes new values. */
export async function drawLines(parent, { lines, values, label, hasTime = false, highest }) {
  const uPlot = await load();
  const box = h("div", { class: "chart", role: "img", "aria-label": label });
  parent.append(box);
  let plot = make();

  function make() {
    return new uPlot(optionsOf(box, { lines, hasTime, highest }), values, box);
  }
  const remake = () => {
    plot.destroy();
    plot = make();
  };
  document.addEventListener("themechange", remake);
  const width = new ResizeObserver(() => {
    if (!box.isConnected) {
      document.removeEventListener("themechange", remake);
      width.disconnect();
    } else if (box.clientWidth > 0) plot.setSize({ width: box.clientWidth, height: HEIGHT });
  });
  width.observe(box);
  return (more, said) => {
    values = more;
    plot.setData(more);
    box.setAttribute("aria-label", said ?? label);
  };
}

function load() {
  library ??= import("./vendor/uPlot.esm.js").then((module) => {
    document.head.append(h("link", { rel: "stylesheet", href: "vendor/uPlot.min.css" }));
    return module.default;
  });
  return library;
}

function optionsOf(box, { lines, hasTime, highest }) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => {
    const probe = h("span", { class: `ink-${name}` });
    box.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const axis = {
    stroke: colour("muted"),
    grid: { stroke: colour("line"), width: 1 },
    ticks: { show: false },
    font: `12px ${style.fontFamily || "sans-serif"}`,
  };
  return {
    width: Math.max(box.clientWidth, 200),
    height: HEIGHT,
    cursor: { drag: { x: false, y: false } },
    legend: { show: lines.length > 1, live: false },
    scales: {
      x: { time: hasTime },
      y: {
        range: (_, low, high) => [
          Math.min(0, low ?? 0),
          highest ?? Math.max((high ?? 0) * 1.15, 1),
        ],
      },
    },
    axes: [
      { ...axis, size: 28, ...(hasTime ? CLOCK : EPOCHS) },
      { ...axis, size: 52 },
    ],
    series: [
      { label: hasTime ? "time" : "epoch" },
      // the last is drawn over the others, and has the first colour
      ...lines.map((name, index) => ({
        label: name,
        stroke: colour(`series-${lines.length - index}`),
        width: 2,
        points: { show: !hasTime, size: 6 },
      })),
    ],
  };
}
