// What scrolls sideways can be scrolled with the arrow keys: it is a stop of the Tab key while it
// is wider than its place, folded solutions included. The theme does so for code when the window
// changes, but not for equations, nor for what is unfolded later.
const SCROLLING = "pre, .cell_output > .output, .pst-scrollable-table-container, mjx-container[display]";

window.addEventListener("load", async () => {
  await window.MathJax?.startup.promise;
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      target.tabIndex = target.scrollWidth > target.clientWidth + 1 ? 0 : -1;
    }
  });
  document.querySelectorAll(SCROLLING).forEach((node) => observer.observe(node));
});
