// What the views share. Python puts this text in front of each view's module, so that
// a view stays one plain ES module without imports, as anywidget wants it.

// Line colours with a contrast of at least 3:1 on white and on #121212 alike, and a dash
// pattern each, so that no line is told from another by its colour alone.
export const COLOURS = ["#2f80c8", "#cc6518", "#2c9160", "#b85cab"];
export const DASHES = ["none", "8 4", "2 4", "10 4 2 4"];
// Of what is filled, from nearly solid to hollow, for the same reason.
const FILLS = [0.4, 0.1, 0.25, 0];
const stroke = (k) => ({
  stroke: COLOURS[k % COLOURS.length],
  "stroke-dasharray": DASHES[k % DASHES.length],
});
const fill = (k) => ({
  fill: COLOURS[k % COLOURS.length],
  "fill-opacity": FILLS[k % FILLS.length],
});

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

/** Scramble 32 bits: lowbias32 of C. Wellons, "Prospecting for Hash Functions", 2018. */
function scramble(x) {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * `count` standard normal numbers of the stream `seed`, those of laboratory_noise in Python:
 * word k = 1, 2, … is scramble(scramble(seed) + k · 0x9E3779B9), and two words give two normals
 * (Box & Muller 1958).
 */
export function laboratoryNoise(seed, count) {
  const start = scramble(seed);
  const uniform = (k) => (scramble(start + Math.imul(k, 0x9e3779b9)) + 0.5) / 2 ** 32;
  const noise = new Float64Array(count);
  for (let k = 0; k < count; k += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform(k + 1)));
    const angle = 2 * Math.PI * uniform(k + 2);
    noise[k] = radius * Math.cos(angle);
    if (k + 1 < count) noise[k + 1] = radius * Math.sin(angle);
  }
  return noise;
}

/** ln N(x; μ, σ²). */
export const logNormal = (x, mu, sigma) =>
  -0.5 * ((x - mu) / sigma) ** 2 - Math.log(sigma * Math.sqrt(2 * Math.PI));

/** Where the laboratories of Gaussians compute their densities. */
export const GRID = Array.from({ length: 801 }, (_, k) => (k - 400) / 40);

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

/** A button that draws the noise of the next seed. */
function freshNoise(model) {
  const button = element(
    "button",
    { type: "button", class: "diffusion-button" },
    "draw fresh noise",
  );
  button.addEventListener("click", () => {
    model.set("seed", (model.get("seed") + 1) >>> 0);
    model.save_changes();
  });
  return element("p", { class: "diffusion-again" }, button);
}

/** `text` after a sample of the line, or of the bar, that it explains. */
function keyed(style, text, kind = "line") {
  const sample = kind === "line" ? { d: "M0 5H24" } : { d: "M2 1H22V9H2Z", ...fill(style) };
  const swatch = drawing(
    "svg",
    { class: "diffusion-swatch", viewBox: "0 0 24 10", "aria-hidden": "true" },
    drawing("path", { ...sample, ...stroke(style) }),
  );
  const node = rich("span", text);
  node.prepend(swatch);
  return node;
}

/**
 * Name the controls beside a view, and each slider's value in words: ipywidgets does neither,
 * and ipywidgets 7 does not even say that its handle is a slider. Of several views over one
 * slider the first does it.
 */
function describeControls(el, ...sliders) {
  const box = el.closest(".diffusion-box");
  if (!box || !el.contains(box.querySelector(".diffusion-view"))) return;
  const handles = box.querySelectorAll(".noUi-handle, .ui-slider-handle");
  sliders.forEach(({ label, value, min = 0, max, words }, k) => {
    const aria = { label, valuemin: min, valuemax: max, valuenow: value, valuetext: words };
    const texts = Object.entries(aria).map(([name, text]) => [`aria-${name}`, String(text)]);
    if (handles[k]) describe(handles[k], new Map([["role", "slider"], ...texts]));
  });
  for (const icon of box.querySelectorAll(".widget-play button i")) {
    const name = icon.classList.contains("fa-stop") ? "back to the start" : "play or pause";
    icon.parentNode.setAttribute("aria-label", name);
    icon.parentNode.setAttribute("title", name);
  }
}

/**
 * Keep these attributes on a slider's handle, which puts its own there at each key press. Each view
 * is a module of its own, so what they share lies on the handle: before the first of several views
 * is shown the second takes its part, and two that wrote by turns would never end.
 */
function describe(handle, attributes) {
  const watched = handle.diffusionDescription;
  handle.diffusionDescription = attributes;
  const write = () => {
    for (const [name, text] of handle.diffusionDescription) {
      if (handle.getAttribute(name) !== text) handle.setAttribute(name, text);
    }
  };
  write();
  if (watched) return;
  new MutationObserver(write).observe(handle, { attributeFilter: [...attributes.keys()] });
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

/** The least and the greatest of the finite `values`. */
export function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  }
  return [low, high];
}

/**
 * Left and right side of each bar of series `s` of `count`. Over numbers x a bar reaches halfway
 * to its neighbours. Text k is a category that reaches from k to k + 1, and has a bar of each
 * series.
 */
export function barSides(x, s = 0, count = 1) {
  if (typeof x[0] === "string") {
    const width = 0.8 / count;
    return x.map((_, k) => [k + 0.1 + s * width, k + 0.1 + (s + 1) * width]);
  }
  const half = x.slice(1).map((v, k) => (v - x[k]) / 2);
  return x.map((v, k) => [v - (half[k - 1] ?? half[0]), v + (half[k] ?? half.at(-1))]);
}

const PLOT_HEIGHT = 150;

/**
 * Lines and bars over x: an SVG of stretched paths for what scales, HTML around it for what must
 * not. `series` is [{name, values, style, kind}]: `style` chooses colour, dash and fill; `kind`
 * is "line", "area", a line filled down to 0, or "bars". Values that are not finite are left out.
 * `range` is what the y axis covers, that of the values unless given. `named` puts the names of
 * the lines at their ends. Returns {node, mark, across}; mark(k) puts the marker at x[k],
 * across(v) is where v lies, 0 at the left to 1.
 */
function drawChart({ x, series, xName, yName, logY = false, range, named = true }) {
  const categories = typeof x[0] === "string";
  const bars = series.filter((s) => s.kind === "bars");
  let [low, high] = range ?? extent(series.flatMap((s) => [...s.values]));
  const empty = low > high;
  const fromZero = series.some((s) => s.kind && s.kind !== "line");
  if (fromZero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  const flat = low === high ? Math.abs(low) / 2 || 1 : 0;
  const scale = logY ? Math.log10 : (v) => v;
  let yTicks = [1, 10];
  if (!empty) yTicks = logY ? decades(low, high) : ticks(low - (fromZero ? 0 : flat), high + flat);
  const [bottom, top] = [scale(yTicks[0]), scale(yTicks.at(-1))];
  const sides = categories || bars.length ? barSides(x) : [];
  const [left, right] = categories
    ? [0, x.length]
    : [sides[0]?.[0] ?? x[0] ?? 0, sides.at(-1)?.[1] ?? x.at(-1) ?? 1];
  const across = (v) => (right === left ? 0.5 : (v - left) / (right - left));
  const down = (v) => (top - scale(v)) / (top - bottom);
  const X = (v) => (1000 * across(v)).toFixed(1);
  const Y = (v) => (1000 * down(v)).toFixed(1);

  const line = (values) => {
    if (categories) return sides.map(([a, b], k) => `M${X(a)} ${Y(values[k])}H${X(b)}`).join("");
    let text = "";
    let pen = "M";
    x.forEach((v, k) => {
      if (Number.isFinite(values[k])) text += `${pen}${X(v)} ${Y(values[k])}`;
      pen = Number.isFinite(values[k]) ? "L" : "M";
    });
    return text;
  };
  const bar = (values, number) => {
    const own = barSides(x, number, bars.length);
    if (categories) {
      return own
        .map(([a, b], k) => `M${X(a)} ${Y(0)}V${Y(values[k])}H${X(b)}V${Y(0)}Z`)
        .join("");
    }
    // Bars that touch are one outline, or their sides would fill them where they are many.
    const tops = own.map(([, b], k) => `V${Y(values[k])}H${X(b)}`).join("");
    return `M${X(left)} ${Y(0)}${tops}V${Y(0)}Z`;
  };
  const paths = series.flatMap((s) => {
    const { values, style, kind = "line" } = s;
    const data = { "data-series": s.name, "data-kind": kind, ...stroke(style) };
    if (kind === "bars") {
      return [drawing("path", { d: bar(values, bars.indexOf(s)), ...fill(style), ...data })];
    }
    const filled = { d: `${line(values)}V${Y(0)}H${X(left)}Z`, ...fill(style) };
    const area = kind === "area" ? [drawing("path", filled)] : [];
    return [...area, drawing("path", { d: line(values), ...data })];
  });
  const marker = drawing("path", { class: "diffusion-marker", d: "" });
  const dots = series.map((s) =>
    drawing("path", { class: "diffusion-dot", stroke: stroke(s.style).stroke, d: "" }),
  );
  const plot = drawing(
    "svg",
    { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...yTicks.map((y) => drawing("path", { class: "diffusion-grid", d: `M0 ${Y(y)}H1000` })),
    marker,
    ...paths,
    ...dots,
  );

  const beside = (text, height, attributes) => {
    const node = rich("span", text, attributes);
    node.style.top = `${height}px`;
    return node;
  };
  const drawn = named ? series.filter((s) => [...s.values].some(Number.isFinite)) : [];
  const ends = drawn.map((s) => PLOT_HEIGHT * down([...s.values].findLast(Number.isFinite)));
  const heights = spread(ends, 16, PLOT_HEIGHT - 8);
  const names = drawn.map((s, k) => {
    const node = beside(s.name, heights[k], { class: "diffusion-name" });
    node.style.borderColor = stroke(s.style).stroke;
    return node;
  });
  const xTicks = right > left ? ticks(left, right).filter((v) => v >= left && v <= right) : [left];
  const numbers = xTicks.map((v) => {
    const node = element("span", {}, readable(v));
    node.style.left = `${100 * across(v)}%`;
    return node;
  });
  const below = categories ? x.map((text) => rich("span", text)) : numbers;

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
    element("div", { class: `diffusion-x ${categories ? "diffusion-categories" : ""}` }, ...below),
    rich("div", xName, { class: "diffusion-x-name" }),
  );
  node.style.setProperty("--plot-height", `${PLOT_HEIGHT}px`);

  const mark = (k) => {
    marker.setAttribute("d", `M${X(x[k])} 0V1000`);
    node.dataset.marker = x[k];
    series.forEach((s, n) => {
      const shown = Number.isFinite(s.values[k]);
      // A line of no length with round ends is a dot that the stretched SVG leaves round.
      dots[n].setAttribute("d", shown ? `M${X(x[k])} ${Y(s.values[k])}h0.01` : "");
    });
  };
  return { node, mark, across };
}
