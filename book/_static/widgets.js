// Runs between require.js and the widget manager, and keeps both on this site.
const vendor = new URL("../vendor/", document.currentScript.src).href;

// The manager asks require for "anywidget", and goes to another host if that is not found here.
require.config({ baseUrl: vendor });

// The manager speaks to MathJax 2 through this queue, which MathJax 3 lacks. Labels of the
// widgets are plain Unicode, so there is nothing to typeset in them.
if (window.MathJax) window.MathJax.Hub = { Queue() {} };
