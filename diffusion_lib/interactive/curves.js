// Lines over x, with an optional marker and the value of each line there.

function render({ model, el }) {
  const hasMarker = model.get("has_marker");
  const readout = element("p", { class: "diffusion-readout" });
  const holder = element("div", { class: "diffusion-charts" });
  const root = element("div", { class: "diffusion-view", "data-view": "curves" }, holder, readout);
  el.append(root);
  let chart;

  function draw() {
    const { x, names, values } = model.get("data");
    const position = Math.min(model.get("position"), x.length - 1);
    const at = hasMarker ? position : x.length - 1;
    if (hasMarker && x.length) chart.mark(at);
    const value = `${model.get("x_name")} = ${x.length ? readable(x[at]) : "–"}`;
    const shown = names.map((name, k) =>
      keyed(k, `${name} = ${x.length ? readable(values[k][at]) : "–"}`),
    );
    readout.replaceChildren(rich("span", value), ...shown);
    Object.assign(root.dataset, { position: at, points: x.length });
    const words = [value, ...shown.map((item) => item.textContent)].join(", ");
    describeControls(el, { label: model.get("x_name"), value: at, max: x.length - 1, words });
  }

  function newData() {
    const { x, names, values } = model.get("data");
    const series = names.map((name, k) => ({ name, values: values[k], style: k }));
    chart = drawChart({
      x,
      series,
      xName: model.get("x_name"),
      yName: model.get("y_name"),
      logY: model.get("log_y"),
    });
    holder.replaceChildren(chart.node);
    draw();
  }

  model.on("change:data", newData);
  model.on("change:position", draw);
  newData();
  whenShown(el, draw);
}

export default { render };
