// Images over an index: for each name a row of samples, all of the frame that the slider chose.

function render({ model, el }) {
  const names = model.get("names");
  const index = model.get("index");
  const indexName = model.get("index_name");
  const labels = model.get("labels");
  const captions = model.get("captions");
  const [, samples, channels, height, width] = model.get("shape");
  const size = channels * height * width;

  const rows = names.map((name) =>
    Array.from({ length: samples }, (_, sample) =>
      imageCanvas(width, height, { role: name, sample }),
    ),
  );
  const sections = names.map((name, n) => {
    const cells = rows[n].map((canvas, k) => {
      const caption = captions.length ? [rich("figcaption", captions[k])] : [];
      return element("figure", {}, canvas, ...caption);
    });
    return element(
      "div",
      { class: "diffusion-row" },
      rich("div", name, { class: "diffusion-row-name" }),
      element("div", { class: "diffusion-cells" }, ...cells),
    );
  });
  const readout = element("p", { class: "diffusion-readout" });
  const root = element(
    "div",
    { class: "diffusion-view", "data-view": "panels" },
    readout,
    ...sections,
  );
  root.style.setProperty("--samples", samples);
  el.append(root);

  function draw() {
    const position = model.get("position");
    const bytes = bytesOf(model.get("pixels"));
    const value = `${indexName} = ${index[position]}`;
    rows.forEach((row, n) => {
      row.forEach((canvas, k) => {
        const start = ((n * index.length + position) * samples + k) * size;
        paint(canvas, bytes.subarray(start, start + size), channels);
        const caption = captions.length ? ` (${captions[k]})` : "";
        canvas.setAttribute(
          "aria-label",
          `${names[n]}, image ${k + 1} of ${samples}${caption}, ${value}`,
        );
      });
    });
    const words = labels.length ? [value, labels[position]] : [value];
    readout.replaceChildren(...words.map((text) => rich("span", text)));
    Object.assign(root.dataset, { position, index: index[position] });
    describeControls(el, {
      label: indexName,
      value: position,
      max: index.length - 1,
      words: words.join(", "),
    });
  }

  model.on("change:position", draw);
  draw();
  whenShown(el, draw);
}

export default { render };
