// Points to pick: draw around them, click one, or go with the arrow keys and pick with Space.
const NS = "http://www.w3.org/2000/svg";
const GO = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function render({ model, el }) {
  el.innerHTML = `<div class="rw-cloud" tabindex="0" role="application"
    aria-label="References: arrow keys go from point to point, Space picks, Escape picks none"></div>
    <div class="rw-num rw-cloud-word" role="status" aria-live="polite"></div>`;
  const [root, word] = el.children;
  let points = new Map(), places = new Map(), here = null, line = null, shape = null;

  const picked = () => new Set(model.get("selected"));
  const pick = (rows) => {
    model.set("selected", [...rows].sort((a, b) => a - b));
    model.save_changes();
  };
  const toggle = (row, rows = picked()) => {
    if (!rows.delete(row)) rows.add(row);
    pick(rows);
  };
  const say = (row) => { word.textContent = row === null ? "" : points.get(row).textContent; };
  const mark = () => {
    const rows = picked();
    for (const [row, point] of points) point.toggleAttribute("data-picked", rows.has(row));
  };
  const go = (row) => {
    points.get(here)?.removeAttribute("data-here");
    here = row;
    if (row !== null) points.get(row).setAttribute("data-here", "");
    say(row);
  };
  const draw = () => {
    root.innerHTML = model.get("svg");
    points = new Map([...root.querySelectorAll("[data-point]")].map((e) => [+e.dataset.point, e]));
    places = new Map([...points].map(([row, e]) => {
      const { x, y, width, height } = e.getBBox();
      return [row, [x + width / 2, y + height / 2]];
    }));
    here = line = null;
    mark();
  };

  const at = (event) => {
    const svg = root.firstChild, { x, y } = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    return [x, y];
  };
  const nearest = ([x, y], most) => {
    let best = null;
    for (const [row, [px, py]] of places) {
      const far = Math.hypot(px - x, py - y);
      if (far < most) [best, most] = [row, far];
    }
    return best;
  };
  // Even-odd rule: how many edges of the line a ray to the right crosses.
  const inside = ([x, y]) => line.reduce((odd, [ax, ay], i) => {
    const [bx, by] = line[(i + 1) % line.length];
    return (ay > y) !== (by > y) && x < ax + ((bx - ax) * (y - ay)) / (by - ay) ? !odd : odd;
  }, false);

  root.addEventListener("pointerdown", (event) => {
    if (event.button || !root.firstChild) return;
    line = [at(event)];
    shape = root.firstChild.appendChild(document.createElementNS(NS, "path"));
    shape.setAttribute("class", "rw-lasso");
    root.setPointerCapture(event.pointerId);
  });
  root.addEventListener("pointermove", (event) => {
    if (!root.firstChild) return;
    if (!line) return say(nearest(at(event), 8));
    line.push(at(event));
    shape.setAttribute("d", `M${line.map((p) => p.join()).join("L")}Z`);
  });
  const end = (event) => {
    if (!line) return;
    shape.remove();
    const [[ax, ay], [bx, by]] = [line[0], line.at(-1)];
    const moved = line.some(([x, y]) => Math.hypot(x - ax, y - ay) > 4);
    const rows = event.shiftKey ? picked() : new Set();
    if (event.type === "pointerup") {
      if (moved) {
        for (const [row, place] of places) if (inside(place)) rows.add(row);
        pick(rows);
      } else {
        const row = nearest([bx, by], 8);
        if (row !== null) toggle(row);
      }
    }
    line = null;
  };
  root.addEventListener("pointerup", end);
  root.addEventListener("pointercancel", end);
  root.addEventListener("blur", () => go(null));
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = GO[event.key];
    if (step && points.size) {
      const [x, y] = places.get(here) ?? [-1, -1], [dx, dy] = step;
      let best = null, least = Infinity;
      for (const [row, [px, py]] of places) {
        const on = (px - x) * dx + (py - y) * dy, off = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
        if (row !== here && (here === null || on > 0.01) && Math.abs(on) + 2 * off < least)
          [best, least] = [row, Math.abs(on) + 2 * off];
      }
      if (best !== null) go(best);
    } else if (event.key === " " && here !== null) toggle(here);
    else if (event.key === "Escape") pick([]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  model.on("change:svg", draw);
  model.on("change:selected", mark);
  draw();
  return () => { model.off("change:svg", draw); model.off("change:selected", mark); };
}

export default { render };
