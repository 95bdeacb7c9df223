// The noise laboratory: x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε for any t, computed here, in float64.

export const SCHEDULES = ["linear", "cosine"];

/**
 * β and ᾱ of t = 0 … T, as diffusion_lib.schedule computes them: "linear" of Ho et al. 2020,
 * rescaled by 1000/T, or "cosine" of Nichol & Dhariwal 2021, equation 17.
 */
export function makeSchedule(name, T) {
  const beta = new Float64Array(T + 1);
  const alphaBar = new Float64Array(T + 1).fill(1);
  const f = (t) => Math.cos((((t / T + 0.008) / 1.008) * Math.PI) / 2) ** 2;
  for (let t = 1; t <= T; t++) {
    beta[t] =
      name === "linear"
        ? ((1e-4 + ((t - 1) * (0.02 - 1e-4)) / (T - 1)) * 1000) / T
        : Math.min(1 - f(t) / f(t - 1), 0.999);
    alphaBar[t] = alphaBar[t - 1] * (1 - beta[t]);
  }
  return { beta, alphaBar };
}

/** x_t for x₀ given as bytes u, x₀ = u / 127.5 − 1. */
export function addNoise(bytes, noise, alphaBar) {
  const [signal, sigma] = [Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)];
  return Float64Array.from(bytes, (u, k) => signal * (u / 127.5 - 1) + sigma * noise[k]);
}

// Play runs over a fixed number of frames, so that a sweep takes as long for every T.
export const FRAMES = 240;
export const frameOf = (t, T) => Math.round((t * FRAMES) / T);
export const timeOf = (frame, T) => Math.round((frame * T) / FRAMES);

/** Keep t, T and the frame of Play together. Runs once for a model, however often it is shown. */
function initialize({ model }) {
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  // Several t share a frame, or several frames a t: correct only what disagrees both ways.
  model.on("change:t", () => {
    const [t, T] = [model.get("t"), model.get("T")];
    if (timeOf(model.get("frame"), T) !== t) set("frame", frameOf(t, T));
  });
  model.on("change:frame", () => {
    const [frame, T] = [model.get("frame"), model.get("T")];
    if (frameOf(model.get("t"), T) !== frame) set("t", timeOf(frame, T));
  });
  model.on("change:T_index", () => {
    const T = model.get("T_choices")[model.get("T_index")];
    const before = model.get("T");
    const t = Math.round((model.get("t") * T) / before);
    // The slider's max follows T: raise it before t and lower it after, or it would clip t.
    for (const name of T > before ? ["T", "t"] : ["t", "T"]) set(name, name === "T" ? T : t);
    set("frame", frameOf(t, T));
  });
}

function render({ model, el }) {
  const [channels, height, width] = model.get("shape");
  const size = channels * height * width;
  const canvases = {};
  const figure = (role) => {
    canvases[role] = imageCanvas(width, height, { role });
    return element("figure", {}, canvases[role], element("figcaption"));
  };
  const pictures = ["x_0", "noise", "x_t"].map(figure);
  const readout = element("p", { class: "diffusion-readout" });
  const charts = element("div", { class: "diffusion-charts" });
  const root = element(
    "div",
    { class: "diffusion-view", "data-view": "noise-laboratory" },
    element("div", { class: "diffusion-pictures" }, ...pictures),
    freshNoise(model),
    readout,
    charts,
  );
  el.append(root);

  let schedule, marks, noise;

  function newSchedule() {
    const T = model.get("T");
    schedule = makeSchedule(SCHEDULES[model.get("schedule_index")], T);
    const x = Array.from({ length: T + 1 }, (_, t) => t);
    const { alphaBar } = schedule;
    const both = [
      { name: "√ᾱ_t", values: alphaBar.map(Math.sqrt), style: 0 },
      { name: "√(1−ᾱ_t)", values: alphaBar.map((a) => Math.sqrt(1 - a)), style: 1 },
    ];
    const ratio = [
      { name: "log-SNR", values: alphaBar.map((a) => Math.log(a / (1 - a))), style: 2 },
    ];
    const drawn = [
      drawChart({ x, series: both, xName: "t", yName: "factors of x₀ and ε in x_t" }),
      drawChart({ x, series: ratio, xName: "t", yName: "log-SNR = ln(ᾱ_t / (1−ᾱ_t))" }),
    ];
    marks = drawn.map((c) => c.mark);
    charts.replaceChildren(...drawn.map((c) => c.node));
  }

  function newNoise() {
    noise = laboratoryNoise(model.get("seed"), size);
    paint(canvases.noise, Uint8Array.from(noise, toByte), channels);
  }

  function draw() {
    const T = model.get("T");
    const t = Math.min(model.get("t"), T);
    const image = model.get("image");
    const [beta, alphaBar] = [schedule.beta[t], schedule.alphaBar[t]];
    const [signal, sigma] = [Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)];
    const logSNR = Math.log(alphaBar / (1 - alphaBar));
    const bytes = bytesOf(model.get("images")).subarray(image * size, (image + 1) * size);
    paint(canvases.x_0, bytes, channels);
    paint(canvases.x_t, Uint8Array.from(addNoise(bytes, noise, alphaBar), toByte), channels);
    marks.forEach((mark) => mark(t));

    const caption = model.get("captions")[image];
    canvases.x_0.setAttribute("aria-label", `x₀, the clean image: ${caption}`);
    canvases.noise.setAttribute("aria-label", `ε, the noise of seed ${model.get("seed")}`);
    canvases.x_t.setAttribute("aria-label", `x_t, the image noised to t = ${t} of ${T}`);
    const captions = ["x₀", "ε", `x_t = ${signal.toFixed(3)} x₀ + ${sigma.toFixed(3)} ε`];
    pictures.forEach((node, k) => node.lastChild.replaceWith(rich("figcaption", captions[k])));

    const shown = [
      ["t", t],
      ["β_t", beta],
      ["ᾱ_t", alphaBar],
      ["√ᾱ_t", signal],
      ["√(1−ᾱ_t)", sigma],
      ["log-SNR", logSNR],
      ["seed of ε", model.get("seed")],
    ];
    readout.replaceChildren(
      ...shown.map(([name, value]) => rich("span", `${name} = ${readable(value)}`)),
    );
    Object.assign(root.dataset, {
      t,
      steps: T,
      schedule: SCHEDULES[model.get("schedule_index")],
      image,
      seed: model.get("seed"),
      beta,
      alphaBar,
      logSnr: logSNR,
    });
    describeControls(el, {
      label: "time t",
      value: t,
      max: T,
      words: `t = ${t}, ᾱ_t = ${readable(alphaBar)}`,
    });
  }

  model.on("change:t change:image", draw);
  model.on("change:seed", () => (newNoise(), draw()));
  model.on("change:T change:schedule_index", () => (newSchedule(), draw()));
  newSchedule();
  newNoise();
  draw();
  whenShown(el, draw);
}

export default { initialize, render };
