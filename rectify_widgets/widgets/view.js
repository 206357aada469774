// Hands what is done in a panel's HTML back to Python; view.py says what the handles mean.
const HANDLE = "[data-set],[data-do]";
const ARROWS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
const inside = (el, { clientX, clientY }) => {
  const box = el.getBoundingClientRect();
  return [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
};

// The number under the pointer, of a map's values as bytes in units of data-top / 127.
function numberAt(el, event) {
  const { cols, rows, width, height, top, what } = el.dataset;
  const [x, y] = inside(el, event).map((share) => clamp(share, 0, 0.9999));
  el.values ??= Int8Array.from(atob(el.dataset.grid), (c) => c.charCodeAt(0));
  const number = (el.values[Math.floor(y * rows) * cols + Math.floor(x * cols)] * top) / 127;
  const place = `row ${Math.floor(y * height)}, column ${Math.floor(x * width)}`;
  return `${place}: ${number < 0 ? "−" : "+"}${Math.abs(number).toPrecision(2)} ${what}`;
}

function render({ model, el }) {
  el.innerHTML = '<div class="rw-view"></div><div class="rw-tip" hidden></div>';
  const [root, tip] = el.children;
  const all = (selector, from = root) => [...from.querySelectorAll(selector)];
  const act = ({ dataset: { set = "{}", do: call = "{}" } }, arrow) =>
    model.send({ set: JSON.parse(set), do: arrow ? {} : JSON.parse(call) });

  // Scrolls a list and nothing around it, so that the notebook stays where it is.
  function reveal(list, item) {
    const box = list.getBoundingClientRect(), row = item.getBoundingClientRect();
    if (row.top < box.top + row.height || row.bottom > box.bottom)
      list.scrollTop += row.top - box.top - box.height / 2;
  }

  function mark() {
    const marks = Object.entries(model.get("marks"));
    for (const item of all("[data-set]")) {
      const set = JSON.parse(item.dataset.set), mine = marks.filter(([name]) => name in set);
      const same = ([name, wanted]) => JSON.stringify(set[name]) === JSON.stringify(wanted);
      item.toggleAttribute("data-chosen", mine.length > 0 && mine.every(same));
      item.ariaCurrent = item.hasAttribute("data-chosen") ? "true" : null;
    }
    for (const list of all("[data-list]")) {
      const items = all(HANDLE, list), chosen = list.querySelector("[data-chosen]");
      for (const item of items) item.tabIndex = item === (chosen ?? items[0]) ? 0 : -1;
      if (chosen) reveal(list, chosen);
    }
  }

  // What the reader has focused, scrolled or opened stays, by data-key.
  function draw() {
    const focus = root.contains(document.activeElement) && document.activeElement.dataset.key;
    const was = new Map(all("[data-key]").map((e) => [e.dataset.key, e]));
    const at = new Map([...was].map(([key, e]) => [key, [e.scrollTop, e.scrollLeft]]));
    root.innerHTML = model.get("html");
    for (const item of all(`${HANDLE},[data-zoom]`)) item.tabIndex = 0;
    for (const item of all(HANDLE)) item.role = "button";
    for (const e of all("[data-key]")) {
      const { key } = e.dataset;
      if (was.has(key)) {
        if ("open" in e) e.open = was.get(key).open;
        [e.scrollTop, e.scrollLeft] = at.get(key);
        if (key === focus) e.focus({ preventScroll: true });
      }
    }
    mark();
  }

  // Zoom and pan, of all maps together.
  const zoom = { z: 1, x: 0, y: 0 };
  let drag = null, dragged = false;
  const pan = (x, y) => {
    zoom.x = clamp(zoom.x + x, 1 - zoom.z, 0);
    zoom.y = clamp(zoom.y + y, 1 - zoom.z, 0);
    for (const name of "zxy") root.style.setProperty(`--rw-${name}`, zoom[name]);
  };
  const magnify = (factor, x, y) => {
    const z = clamp(zoom.z * factor, 1, 12), grown = z / zoom.z;
    zoom.z = z;
    pan((x - zoom.x) * (1 - grown), (y - zoom.y) * (1 - grown));
  };

  const on = (name, handler) => root.addEventListener(name, (event) =>
    handler(event, event.target.closest("[data-zoom]"), event.target.closest(HANDLE)), { passive: false });
  on("click", (_, map, item) => item && !dragged && act(item));
  on("dblclick", (event, map) => map && magnify(zoom.z > 1 ? 0 : 3, ...inside(map, event)));
  on("wheel", (event, map) => {
    if (!map || !event.ctrlKey) return;
    event.preventDefault();
    magnify(event.deltaY < 0 ? 1.25 : 0.8, ...inside(map, event));
  });
  on("pointerdown", (event, map) => { drag = map && zoom.z > 1 && inside(map, event); dragged = false; });
  on("pointermove", (event, map) => {
    const grid = event.target.closest("[data-grid]");
    tip.hidden = !grid;
    if (grid) tip.textContent = numberAt(grid, event);
    tip.style.translate = `${event.clientX + 12}px ${event.clientY + 16}px`;
    if (!drag || !map || !event.buttons) return;
    const [x, y] = inside(map, event);
    pan(x - drag[0], y - drag[1]);
    drag = [x, y];
    dragged = true;
  });
  on("pointerleave", () => { tip.hidden = true; });
  on("input", ({ target }) => target.dataset.live && root.firstChild.style.setProperty(target.dataset.live, target.value));
  on("change", ({ target }) => target.dataset.live && model.send({ set: { [target.name]: +target.value } }));
  on("keydown", (event, map, item) => {
    const { key } = event, by = ARROWS[key], list = item?.closest("[data-list]");
    if (event.target.dataset.live) event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (item && (key === "Enter" || key === " ")) act(item);
    else if (list && by) {
      const items = all(HANDLE, list);
      const next = items[clamp(items.indexOf(item) + by, 0, items.length - 1)];
      next.focus();
      if (next !== item && next.dataset.set) act(next, 1);
    } else if (map && by) pan(...(/[LR]/.test(key) ? [-by / 10, 0] : [0, -by / 10]));
    else if (map && "+-0".includes(key)) magnify({ "+": 1.5, "-": 1 / 1.5, 0: 0 }[key], 0.5, 0.5);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  model.on("change:html", draw);
  model.on("change:marks", mark);
  draw();
  return () => { model.off("change:html", draw); model.off("change:marks", mark); };
}

export default { render };
