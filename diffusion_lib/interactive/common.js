// What the three views share. Python puts this text in front of each view's module, so that
// a view stays one plain ES module without imports, as anywidget wants it.

// Line colours with a contrast of at least 3:1 on white and on #121212 alike, and a dash
// pattern each, so that no line is told from another by its colour alone.
export const COLOURS = ["#2f80c8", "#cc6518", "#2c9160", "#b85cab"];
export const DASHES = ["none", "8 4", "2 4", "10 4 2 4"];
const colour = (k) => COLOURS[k % COLOURS.length];
const dash = (k) => DASHES[k % DASHES.length];

/** A number as a reader writes it: integers in full, others with four significant digits. */
export function readable(value) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const extreme = size < 1e-4 || size >= 1e6;
  let text = String(Number(value.toPrecision(4)));
  if (Number.isInteger(value)) text = String(value);
  else if (extreme) text = value.toExponential(3);
  return text.replaceAll("-", "−");
}

/** A pixel's byte for a value of [-1, 1]; what lies outside is clipped. */
export const toByte = (x) => Math.round(((Math.min(Math.max(x, -1), 1) + 1) / 2) * 255);

/** The bytes of a `traitlets.Bytes`, which reaches the page as a DataView. */
const bytesOf = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function drawing(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Text in which "x_t" is set as x with a subscript t. */
function rich(tag, text, attributes = {}) {
  const parts = text.split(/_([\p{L}\d])(?![\p{L}\d])/u);
  const nodes = parts.map((part, k) => (k % 2 ? element("sub", {}, part) : part));
  return element(tag, attributes, ...nodes);
}

/** A canvas of one image at its native size; CSS scales it. */
function imageCanvas(width, height, data) {
  const canvas = element("canvas", { width, height, role: "img" });
  Object.assign(canvas.dataset, data);
  return canvas;
}

/** Paint `bytes`, planar as Python has it: (channels, height, width). */
function paint(canvas, bytes, channels) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const size = canvas.width * canvas.height;
  for (let p = 0; p < size; p++) {
    for (let c = 0; c < 3; c++) image.data[4 * p + c] = bytes[p + (channels === 3 ? c * size : 0)];
    image.data[4 * p + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/**
 * Name the controls beside a view, and the slider's value in words: ipywidgets does neither,
 * and ipywidgets 7 does not even say that its handle is a slider.
 */
function describeControls(el, { label, value, max, words }) {
  const box = el.closest(".diffusion-box");
  const handle = box?.querySelector(".noUi-handle, .ui-slider-handle");
  const aria = { label, valuemin: 0, valuemax: max, valuenow: value, valuetext: words };
  handle?.setAttribute("role", "slider");
  for (const [name, text] of Object.entries(aria)) handle?.setAttribute(`aria-${name}`, text);
  for (const icon of box?.querySelectorAll(".widget-play button i") ?? []) {
    const name = icon.classList.contains("fa-stop") ? "back to the start" : "play or pause";
    icon.parentNode.setAttribute("aria-label", name);
    icon.parentNode.setAttribute("title", name);
  }
}

/** Call `action` once `el` is laid out on the page: its neighbours exist only then. */
function whenShown(el, action) {
  const observer = new ResizeObserver(() => {
    if (!el.isConnected) return;
    observer.disconnect();
    action();
  });
  observer.observe(el);
}

/** Round numbers that cover [low, high] in about four steps. */
export function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough * 0.999) ?? 10);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, k) =>
    Number(((first + k) * step).toPrecision(12)),
  );
}

/** Powers of ten that cover [low, high], at most six of them. */
export function decades(low, high) {
  const first = Math.floor(Math.log10(low) + 1e-9);
  const last = Math.max(Math.ceil(Math.log10(high) - 1e-9), first + 1);
  const stride = Math.ceil((last - first) / 5);
  const count = Math.ceil((last - first) / stride) + 1;
  return Array.from({ length: count }, (_, k) => 10 ** (first + k * stride));
}

/** Move heights apart, keeping their order, until none is nearer to the next than `gap`. */
export function spread(heights, gap, limit) {
  const order = heights.map((_, k) => k).sort((a, b) => heights[a] - heights[b]);
  const placed = [...heights];
  order.forEach((k, n) => {
    if (n) placed[k] = Math.max(placed[k], placed[order[n - 1]] + gap);
  });
  order.reverse().forEach((k, n) => {
    placed[k] = Math.min(placed[k], n ? placed[order[n - 1]] - gap : limit);
  });
  return placed;
}

const PLOT_HEIGHT = 150;

/**
 * Lines over x: an SVG of stretched paths for what scales, HTML around it for what must not.
 * `series` is [{name, values, style}], `style` choosing colour and dash. Values that are not
 * finite are left out. Returns {node, mark}; mark(k) puts the marker at x[k].
 */
function lineChart({ x, series, xName, yName, logY = false }) {
  const finite = series.flatMap((s) => [...s.values].filter(Number.isFinite));
  const [low, high] = finite.reduce(
    ([a, b], v) => [Math.min(a, v), Math.max(b, v)],
    [Infinity, -Infinity],
  );
  const flat = low === high ? Math.abs(low) / 2 || 1 : 0;
  const scale = logY ? Math.log10 : (v) => v;
  let yTicks = [1, 10];
  if (finite.length) yTicks = logY ? decades(low, high) : ticks(low - flat, high + flat);
  const [bottom, top] = [scale(yTicks[0]), scale(yTicks.at(-1))];
  const [left, right] = [x[0] ?? 0, x.at(-1) ?? 1];
  const across = (v) => (right === left ? 0.5 : (v - left) / (right - left));
  const down = (v) => (top - scale(v)) / (top - bottom);
  const at = (v, y) => `${(1000 * across(v)).toFixed(1)} ${(1000 * down(y)).toFixed(1)}`;

  const path = (values) => {
    let text = "";
    let pen = "M";
    x.forEach((v, k) => {
      if (Number.isFinite(values[k])) text += pen + at(v, values[k]);
      pen = Number.isFinite(values[k]) ? "L" : "M";
    });
    return text;
  };
  const stroke = (k) => ({ stroke: colour(k), "stroke-dasharray": dash(k) });
  const marker = drawing("path", { class: "diffusion-marker", d: "" });
  const dots = series.map((s) =>
    drawing("path", { class: "diffusion-dot", stroke: colour(s.style), d: "" }),
  );
  const plot = drawing(
    "svg",
    { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...yTicks.map((y) =>
      drawing("path", { class: "diffusion-grid", d: `M0 ${1000 * down(y)}H1000` }),
    ),
    marker,
    ...series.map((s) => drawing("path", { d: path(s.values), ...stroke(s.style) })),
    ...dots,
  );

  const beside = (text, height, attributes) => {
    const node = rich("span", text, attributes);
    node.style.top = `${height}px`;
    return node;
  };
  const drawn = series.filter((s) => [...s.values].some(Number.isFinite));
  const ends = drawn.map((s) => PLOT_HEIGHT * down([...s.values].findLast(Number.isFinite)));
  const heights = spread(ends, 16, PLOT_HEIGHT - 8);
  const names = drawn.map((s, k) => {
    const node = beside(s.name, heights[k], { class: "diffusion-name" });
    node.style.borderColor = colour(s.style);
    return node;
  });
  const xTicks = right > left ? ticks(left, right).filter((v) => v >= left && v <= right) : [left];
  const below = xTicks.map((v) => {
    const node = element("span", {}, readable(v));
    node.style.left = `${100 * across(v)}%`;
    return node;
  });

  const node = element(
    "div",
    {
      class: "diffusion-chart",
      role: "img",
      "aria-label": `${yName} over ${xName}: ${series.map((s) => s.name).join(", ")}`,
    },
    rich("div", yName, { class: "diffusion-y-name" }),
    element(
      "div",
      { class: "diffusion-y" },
      ...yTicks.map((y) => beside(readable(y), PLOT_HEIGHT * down(y))),
    ),
    element("div", { class: "diffusion-plot" }, plot),
    element("div", { class: "diffusion-names" }, ...names),
    element("div", { class: "diffusion-x" }, ...below),
    rich("div", xName, { class: "diffusion-x-name" }),
  );
  node.style.setProperty("--plot-height", `${PLOT_HEIGHT}px`);

  const mark = (k) => {
    const position = (1000 * across(x[k])).toFixed(1);
    marker.setAttribute("d", `M${position} 0V1000`);
    node.dataset.marker = x[k];
    series.forEach((s, n) => {
      const shown = Number.isFinite(s.values[k]);
      // A line of no length with round ends is a dot that the stretched SVG leaves round.
      dots[n].setAttribute("d", shown ? `M${at(x[k], s.values[k])}h0.01` : "");
    });
  };
  return { node, mark };
}
