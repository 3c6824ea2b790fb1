// The first page's two runs. What happens comes from the server, event by event; here it is drawn, and said in words.
"use strict";

(() => {
  const LEFT = 74, RIGHT = 592, CONNECTIONS_AT = 22, CONNECTION = 24, VISITORS_AT = 152, VISITOR = 10, SHORTEST = 8;
  const ROOM = 16; // for a visitor's number inside of a rectangle
  const SAY_EVERY = 2500; // milliseconds: a screen reader takes longer to say it
  const WORDS = { served: "served", timeout: "no connection in time", failed: "failed", waiting: "waiting" };
  const CLASSES = { "in use": "in-use", "held idle": "held" };

  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const token = document.querySelector("#compare [name=csrfmiddlewaretoken]").value;
  const verdict = document.getElementById("verdict");
  const sides = [...document.querySelectorAll(".side")].map((element) => new Side(element));

  function draw(parent, name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  function seconds(number) {
    return `${number.toFixed(1)} s`;
  }

  function Side(element) {
    const svg = element.querySelector("svg");
    const button = element.querySelector("button");
    const now = element.querySelector(".now");
    const aloud = element.querySelector("[role=status]");
    const details = element.querySelector("details");
    let begun, at, until, visitors, rows, done, said;

    const x = (time) => LEFT + ((RIGHT - LEFT) * time) / until;

    function reset() {
      [begun, at, until, done, said] = [null, 0, SHORTEST, null, 0];
      [visitors, rows] = [new Map(), new Map()];
      svg.replaceChildren();
    }

    // Rectangles know their times, for the scale may change under them.
    function place(shape) {
      shape.rect.setAttribute("x", x(shape.from));
      shape.rect.setAttribute("width", Math.max(x(shape.to) - x(shape.from), 0.5));
      if (!shape.label) return;
      shape.label.setAttribute("x", shape.inside ? (x(shape.from) + x(shape.to)) / 2 : x(shape.to) + 4);
      shape.label.classList.toggle("hidden", Boolean(shape.inside) && x(shape.to) - x(shape.from) < ROOM);
    }

    function axis() {
      svg.querySelector(".axis")?.remove();
      const group = draw(svg, "g", { class: "axis" });
      for (let second = 0; second <= until; second++) {
        draw(group, "line", { x1: x(second), x2: x(second), y1: CONNECTIONS_AT, y2: 560 });
        draw(group, "text", { x: x(second), y: 574, "text-anchor": "middle" }, `${second} s`);
      }
      svg.prepend(group);
    }

    function begin(data) {
      begun = data;
      axis();
      draw(svg, "text", { class: "title", x: 0, y: 12 }, "Connections of the pool");
      draw(svg, "text", { class: "title", x: 0, y: VISITORS_AT - 10 }, "Visitors, and how long each was there");
    }

    function pool({ connections }) {
      for (const { pid, state, visitor } of connections) {
        if (!rows.has(pid)) {
          const y = CONNECTIONS_AT + rows.size * CONNECTION;
          draw(svg, "text", { x: 0, y: y + 14 }, `session ${pid}`);
          draw(svg, "rect", { class: "track", x: LEFT, y, width: RIGHT - LEFT, height: CONNECTION - 6 });
          rows.set(pid, { y, shapes: [], state: "free", visitor: null });
        }
        const row = rows.get(pid);
        const last = row.shapes.at(-1);
        if (last && row.state !== "free") last.to = at;
        if (state !== "free" && (state !== row.state || visitor !== row.visitor)) {
          const rect = draw(svg, "rect", { class: CLASSES[state], y: row.y, height: CONNECTION - 6 });
          const shape = { rect, from: at, to: at, inside: true };
          if (state === "held idle" && visitor) {
            shape.label = draw(svg, "text", { class: "on-held hidden", y: row.y + 13, "text-anchor": "middle" }, visitor);
          }
          row.shapes.push(shape);
        }
        [row.state, row.visitor] = [state, visitor];
      }
    }

    function visitor({ number, state, seconds: took }) {
      if (!visitors.has(number)) {
        const y = VISITORS_AT + (number - 1) * VISITOR;
        draw(svg, "text", { class: "small", x: LEFT - 6, y: y + 8, "text-anchor": "end" }, number);
        const label = draw(svg, "text", { class: "small hidden", y: y + 8 });
        visitors.set(number, { rect: draw(svg, "rect", { y, height: VISITOR - 2 }), label, from: at, to: at });
      }
      Object.assign(visitors.get(number), { state, took, to: at });
    }

    function count(state) {
      return [...visitors.values()].filter((each) => each.state === state).length;
    }

    function words() {
      const states = [...rows.values()].map((row) => row.state);
      const [inUse, held, free] = ["in use", "held idle", "free"].map((state) => states.filter((each) => each === state).length);
      const failed = count("failed") ? `, ${count("failed")} failed` : "";
      return [
        `${seconds(at)}: ${count("served")} served, ${count("waiting")} waiting, ` +
          `${count("timeout")} without a connection in time${failed}.`,
        `Connections: ${inUse} in use, ${held} held idle, ${free} free.`,
      ];
    }

    function show() {
      if (!begun) return;
      if (at > until - 0.5) {
        until = Math.ceil(at + 1);
        axis();
      }
      for (const shape of visitors.values()) {
        const { state, took, rect, label } = shape;
        rect.setAttribute("class", state);
        if (state === "waiting") shape.to = at;
        else label.textContent = state === "served" ? seconds(took) : `✕ ${seconds(took)}`;
        label.classList.toggle("bad", state !== "served");
        place(shape);
      }
      for (const { shapes } of rows.values()) shapes.forEach(place);
      now.textContent = words().join("\n");
      if (done || performance.now() > said + SAY_EVERY) {
        said = performance.now();
        aloud.textContent = words().join(" ");
      }
    }

    function finish(data) {
      done = data;
      details.hidden = false;
      details.querySelector("tbody").replaceChildren(
        ...[...visitors].sort(([one], [other]) => one - other).map(([number, { state, took }]) => {
          const row = document.createElement("tr");
          for (const text of [number, WORDS[state], took.toFixed(2)]) row.insertCell().textContent = text;
          row.cells[2].className = "number";
          return row;
        }),
      );
      const texts = {
        served: `${data.served} of ${begun.visitors}`, soon: data.soon, timeouts: data.timeouts, failed: data.failed,
        median: seconds(data.median), worst: seconds(data.worst),
      };
      for (const [name, text] of Object.entries(texts)) {
        document.querySelector(`[data-side="${element.id}"][data-result="${name}"]`).textContent = text;
      }
    }

    function problem({ message }) {
      now.textContent = aloud.textContent = message;
      begun = null;
    }

    const handlers = { begin, pool, visitor, done: finish, problem };

    function handle(text) {
      const [, name, data] = /^event: (\w+)\ndata: (.*)$/.exec(text);
      const parsed = JSON.parse(data);
      at = parsed.at ?? at;
      handlers[name](parsed);
    }

    // Not an EventSource: that only gets, and would begin another run whenever it is cut off.
    async function follow() {
      const response = await fetch(element.dataset.url, { method: "POST", headers: { "X-CSRFToken": token } });
      if (!response.ok) throw new Error(`The server answers ${response.status}.`);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const events = (rest + part.value).split("\n\n");
        rest = events.pop();
        events.forEach(handle);
      }
    }

    this.run = async () => {
      reset();
      now.textContent = aloud.textContent = "The visitors are on their way.";
      // Little moves where that is what the user wants.
      let timer, frame;
      const frames = () => {
        show();
        frame = requestAnimationFrame(frames);
      };
      if (still.matches) timer = setInterval(show, 1000);
      else frames();
      try {
        await follow();
        if (begun && !done) throw new Error("The stream ended too early.");
        show();
      } catch (error) {
        problem({ message: `It did not work. ${error.message}` });
      } finally {
        clearInterval(timer);
        cancelAnimationFrame(frame);
      }
    };
    this.result = () => done && { ...done, visitors: begun.visitors, pool: begun.pool };
    this.button = button;
    reset();
  }

  function compare() {
    const [without, toolkit] = sides.map((side) => side.result());
    if (!without || !toolkit) return;
    verdict.textContent =
      `Over the same ${toolkit.pool} connections, ${without.served} of ${without.visitors} visitors were served ` +
      `without the toolkit, and ${toolkit.served} with it; the longest was there for ${seconds(without.worst)} and ` +
      `${seconds(toolkit.worst)}.`;
  }

  for (const side of sides) {
    side.button.addEventListener("click", async () => {
      // Not "disabled", which would take the focus away.
      if (side.button.getAttribute("aria-disabled") === "true") return;
      verdict.textContent = "";
      for (const each of sides) each.button.setAttribute("aria-disabled", "true");
      await side.run();
      for (const each of sides) each.button.setAttribute("aria-disabled", "false");
      compare();
    });
  }
})();
