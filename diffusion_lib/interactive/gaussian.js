// The Gaussian laboratory: samples x = μ + σε under their density, computed here, in float64.

/** The samples x = μ + σε, their mean, and their standard deviation, divided by n − 1. */
export function describeSamples(noise, mu, sigma) {
  const samples = noise.map((e) => mu + sigma * e);
  const n = samples.length;
  const mean = samples.reduce((sum, x) => sum + x, 0) / n;
  const squares = samples.reduce((sum, x) => sum + (x - mean) ** 2, 0);
  return { samples, mean, deviation: Math.sqrt(squares / (n - 1)) };
}

/** Each sample above, joined by a line to its noise below; `across` as of the chart. */
function fan(noise, samples, across) {
  const X = (v) => (1000 * across(v)).toFixed(1);
  const join = (draw) => [...noise].map((e, k) => draw(X(samples[k]), X(e))).join("");
  const ends = join((x, e) => `M${x} 60h0.01M${e} 940h0.01`);
  return drawing(
    "svg",
    {
      class: "diffusion-fan",
      viewBox: "0 0 1000 1000",
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    },
    drawing("path", { d: join((x, e) => `M${x} 60L${e} 940`), ...stroke(0) }),
    drawing("path", { class: "diffusion-dot", d: ends, ...stroke(0) }),
  );
}

function render({ model, el }) {
  const readout = element("p", { class: "diffusion-readout" });
  const holder = element("div", { class: "diffusion-charts" });
  const root = element("div", { class: "diffusion-view", "data-view": "gaussian-laboratory" });
  root.append(holder, freshNoise(model), readout);
  el.append(root);

  function draw() {
    const [mu, sigma, seed] = ["mu", "sigma", "seed"].map((name) => model.get(name));
    const noise = laboratoryNoise(seed, model.get("samples"));
    const { samples, mean, deviation } = describeSamples(noise, mu, sigma);
    const density = GRID.map((v) => Math.exp(logNormal(v, mu, sigma)));
    const { node, across } = drawChart({
      x: GRID,
      series: [{ name: "N(μ, σ²)", values: density, style: 0, kind: "area" }],
      xName: "x = μ + σε",
      yName: "density",
      named: false,
    });
    const axis = node.querySelector(".diffusion-x").cloneNode(true);
    node.append(fan(noise, samples, across), axis, rich("div", "ε", { class: "diffusion-x-name" }));
    node.setAttribute(
      "aria-label",
      `the density of N(μ, σ²), and under it ${samples.length} samples, each joined to its ε`,
    );
    holder.replaceChildren(node);

    const outside = samples.filter((v) => Math.abs(v) > GRID.at(-1)).length;
    const shown = [
      `μ = ${readable(mu)}`,
      `mean of the samples = ${readable(mean)}`,
      `σ = ${readable(sigma)}`,
      `their standard deviation = ${readable(deviation)}`,
      `seed of ε = ${seed}`,
      ...(outside ? [`${outside} beyond the picture`] : []),
    ];
    readout.replaceChildren(...shown.map((text) => rich("span", text)));
    Object.assign(root.dataset, { mu, sigma, seed, mean, deviation });
    describeControls(
      el,
      { label: "mean μ", value: mu, min: -3, max: 3, words: shown.slice(0, 2).join(", ") },
      {
        label: "standard deviation σ",
        value: sigma,
        min: 0.1,
        max: 3,
        words: shown.slice(2, 4).join(", "),
      },
    );
  }

  model.on("change:mu change:sigma change:seed", draw);
  draw();
  whenShown(el, draw);
}

export default { render };
