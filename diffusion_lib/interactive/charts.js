// Bars and lines over x: of each series the values of the choice and of the frame shown.

/** The values of a view: float32 without the lowest byte, read to 4 significant digits. */
export function fromTriples(bytes) {
  const whole = new Uint8Array((bytes.length / 3) * 4);
  bytes.forEach((byte, k) => (whole[4 * Math.floor(k / 3) + 1 + (k % 3)] = byte));
  return Float64Array.from(new Float32Array(whole.buffer), (v) => Number(v.toPrecision(4)));
}

/** Of each series its n values for a choice and a place; some are the same for all of them. */
export function rowsAt(series, values, n, choice, position) {
  let start = 0;
  return series.map(({ choices, frames }) => {
    const row = Math.min(choice, choices - 1) * frames + Math.min(position, frames - 1);
    const first = start + row * n;
    start += choices * frames * n;
    return values.subarray(first, first + n);
  });
}

const MAX_WORDS = 16; // values that the readout tells

function render({ model, el }) {
  const [series, x, index] = ["series", "x", "index"].map((name) => model.get(name));
  const [indexName, labels] = [model.get("index_name"), model.get("labels")];
  const values = fromTriples(bytesOf(model.get("values")));
  const range = extent(values);
  const told = typeof x[0] === "string" && x.length * series.length <= MAX_WORDS;
  const readout = element("p", { class: "diffusion-readout" });
  const holder = element("div", { class: "diffusion-charts" });
  const root = element("div", { class: "diffusion-view", "data-view": "charts" });
  root.append(holder, readout);
  el.append(root);

  function draw() {
    const [choice, position] = [model.get("choice"), model.get("position")];
    const rows = rowsAt(series, values, x.length, choice, position);
    const shown = series.map((s, k) => ({ ...s, values: rows[k], style: k }));
    const { node } = drawChart({
      x,
      series: shown,
      xName: model.get("x_name"),
      yName: model.get("y_name"),
      range,
      named: false,
    });
    holder.replaceChildren(node);

    const value = `${indexName} = ${index[position]}`;
    const remark = labels.length ? [labels[Math.min(choice, labels.length - 1)][position]] : [];
    const texts = shown.map(({ name, values: row }) => {
      const pairs = x.map((text, k) => `${text} ${readable(row[k])}`);
      return told ? `${name}: ${pairs.join(", ")}` : name;
    });
    readout.replaceChildren(
      ...[value, ...remark].map((text) => rich("span", text)),
      ...texts.map((text, k) => keyed(k, text, shown[k].kind)),
    );
    Object.assign(root.dataset, { position, index: index[position], choice });
    describeControls(el, {
      label: indexName,
      value: position,
      max: index.length - 1,
      words: [value, ...remark, ...(told ? texts : [])].join(", "),
    });
  }

  model.on("change:position change:choice", draw);
  draw();
  whenShown(el, draw);
}

export default { render };
