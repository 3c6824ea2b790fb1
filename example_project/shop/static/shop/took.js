// The footer of every page: how long it took, as the browser saw it, and what the server says of it (Server-Timing).
"use strict";

function milliseconds(number) {
  return `${number.toFixed(1)} ms`;
}

function tell() {
  const [page] = performance.getEntriesByType("navigation");
  if (!page || !page.responseStart) return;
  const text = document.createElement("p");
  text.textContent =
    `This page took ${milliseconds(page.loadEventEnd || performance.now())}, ` +
    `of which ${milliseconds(page.responseStart - page.requestStart)} were waiting for the server.`;
  const list = document.createElement("ul");
  for (const { name, description, duration } of page.serverTiming ?? []) {
    const item = document.createElement("li");
    const code = document.createElement("code");
    code.textContent = name;
    item.append(code, ` ${milliseconds(duration)} ${description}`);
    list.append(item);
  }
  const label = document.createElement("p");
  label.textContent = "Server-Timing:";
  document.getElementById("took").replaceChildren(text, ...(list.children.length ? [label, list] : []));
}

// The event's own handlers count, too: so after them.
addEventListener("load", () => setTimeout(tell));
