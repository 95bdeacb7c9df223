// The divergence laboratory: two Gaussians and how far one is from the other, in float64.

/** KL(p‖q) in nats of two Gaussians, each given as [μ, σ]. */
export const gaussianKL = ([pMu, pSigma], [qMu, qSigma]) =>
  Math.log(qSigma / pSigma) + (pSigma ** 2 + (pMu - qMu) ** 2) / (2 * qSigma ** 2) - 0.5;

/** p ln(p/q) at x: what KL(p‖q) is the integral of. */
export function integrand(x, p, q) {
  const logP = logNormal(x, ...p);
  return Math.exp(logP) * (logP - logNormal(x, ...q));
}

function render({ model, el }) {
  const readout = element("p", { class: "diffusion-readout" });
  const holder = element("div", { class: "diffusion-charts" });
  const root = element("div", { class: "diffusion-view", "data-view": "divergence-laboratory" });
  root.append(readout, holder);
  el.append(root);
  const chart = (yName, kind, pairs) =>
    drawChart({
      x: GRID,
      series: pairs.map(([name, f], style) => ({ name, values: GRID.map(f), style, kind })),
      xName: "x",
      yName,
      named: false,
    }).node;

  function draw() {
    const [p, q] = ["p", "q"].map((name) => [model.get(`${name}_mu`), model.get(`${name}_sigma`)]);
    const density = (pair) => (v) => Math.exp(logNormal(v, ...pair));
    holder.replaceChildren(
      chart("density", "line", [
        ["p", density(p)],
        ["q", density(q)],
      ]),
      chart("integrands of the divergences", "area", [
        ["p ln(p/q)", (v) => integrand(v, p, q)],
        ["q ln(q/p)", (v) => integrand(v, q, p)],
      ]),
    );

    const [forward, backward] = [gaussianKL(p, q), gaussianKL(q, p)];
    const gaussian = ([mu, sigma]) => `N(${readable(mu)}, ${readable(sigma)}²)`;
    const values = [`${readable(forward)} nats`, `${readable(backward)} nats`];
    readout.replaceChildren(
      keyed(0, `p = ${gaussian(p)}`),
      keyed(1, `q = ${gaussian(q)}`),
      keyed(0, `KL(p‖q) = ∫ p ln(p/q) dx = ${values[0]}`, "area"),
      keyed(1, `KL(q‖p) = ∫ q ln(q/p) dx = ${values[1]}`, "area"),
    );
    Object.assign(root.dataset, { p, q, forward, backward });
    const sliders = [p, q].flatMap(([mu, sigma], k) => {
      const name = "pq"[k];
      const say = (text, value) =>
        `${text} of ${name} = ${readable(value)}, KL(p‖q) = ${values[0]}, KL(q‖p) = ${values[1]}`;
      return [
        { label: `mean of ${name}`, value: mu, min: -3, max: 3, words: say("μ", mu) },
        {
          label: `standard deviation of ${name}`,
          value: sigma,
          min: 0.1,
          max: 3,
          words: say("σ", sigma),
        },
      ];
    });
    describeControls(el, ...sliders);
  }

  model.on("change:p_mu change:p_sigma change:q_mu change:q_sigma", draw);
  draw();
  whenShown(el, draw);
}

export default { render };
