// Paints masks over a picture in the page alone; each finished stroke goes to Python as bits.
// canvas.py says what the traits are.  A pixel is painted where its centre is covered.
const TOOLS = {
  brush: ["Brush", "B", "Paint with a round brush"],
  eraser: ["Eraser", "E", "Take paint away with a round brush"],
  rectangle: ["Rectangle", "R", "Paint a rectangle from corner to corner"],
  lasso: ["Lasso", "L", "Paint a line and all that it encloses"],
  fill: ["Fill", "F", "Paint an area up to the paint around it"],
  move: ["Move", "M", "Move the enlarged picture"],
};
const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
const HINTS = `<div><b>Keys</b> <kbd>← ↑ ↓ →</kbd> go, with <kbd>Shift</kbd> 8 pixels · <kbd>Space</kbd>
  pen down, pen up · <kbd>Esc</kbd> drop the stroke · <kbd>,</kbd> <kbd>.</kbd> brush size ·
  <kbd>+</kbd> <kbd>−</kbd> <kbd>0</kbd> zoom</div><div><b>Mouse</b> right button or <kbd>Alt</kbd>
  takes paint away · wheel: brush size · <kbd>Ctrl</kbd> and wheel: zoom · middle button: move</div>`;
const SIDE = 448, NEAR = 40, STEPS = 200;
const FINE = 128 * 128;  // of more pixels than this the outermost are drawn darker, in place of a line round them
const PAINT = 0x73005ed5, EDGE = 0xe6005ed5;  // alpha, blue, green, red
const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

// -- bits ---------------------------------------------------------------------------------------

function pack(mask) {
  const bits = new Uint8Array(Math.ceil(mask.length / 8));
  for (let i = 0; i < mask.length; i++) if (mask[i]) bits[i >> 3] |= 128 >> (i & 7);
  return bits;
}
function unpack(bits, mask) {
  for (let i = 0; i < mask.length; i++) mask[i] = (bits[i >> 3] >> (7 - (i & 7))) & 1;
}
const same = (a, b) => a.length === b.length && a.every((v, i) => v === b[i]);
const through = async (bits, stream) =>
  new Uint8Array(await new Response(new Blob([bits]).stream().pipeThrough(stream)).arrayBuffer());

// -- shapes, on a sheet { mask, width, height } --------------------------------------------------

// Upper left corner of a brush of that size whose middle is nearest to a point.
const corner = ([x, y], size) => [Math.round(x - size / 2), Math.round(y - size / 2)];

function row({ mask, width, height }, y, from, to, value) {
  if (y < 0 || y >= height || to < 0 || from >= width || to < from) return;
  mask.fill(value, y * width + Math.max(from, 0), y * width + Math.min(to, width - 1) + 1);
}
function stamp(sheet, left, top, size, value) {
  const r = size / 2;
  for (let i = 0; i < size; i++) {
    const reach = Math.sqrt(r * r - (i + 0.5 - r) ** 2);
    row(sheet, top + i, left + Math.ceil(r - 0.5 - reach), left + Math.floor(r - 0.5 + reach), value);
  }
}
function stroke(sheet, from, to, size, value) {
  const [x, y] = corner(from, size), [u, v] = corner(to, size);
  const n = Math.max(Math.abs(u - x), Math.abs(v - y), 1);
  for (let k = 0; k <= n; k++)
    stamp(sheet, Math.round(x + ((u - x) * k) / n), Math.round(y + ((v - y) * k) / n), size, value);
}
function rectangle(sheet, from, to, value) {
  const [x, u] = [from[0], to[0]].map(Math.floor).sort((a, b) => a - b);
  const [y, v] = [from[1], to[1]].map(Math.floor).sort((a, b) => a - b);
  for (let i = Math.max(y, 0); i <= Math.min(v, sheet.height - 1); i++) row(sheet, i, x, u, value);
}
function enclose(sheet, points, value) {
  const edges = points.map((point, i) => [point, points[(i + 1) % points.length]]);
  for (let i = 0; i < sheet.height; i++) {
    const y = i + 0.5;
    const cuts = edges
      .filter(([a, b]) => a[1] <= y !== b[1] <= y)
      .map(([a, b]) => a[0] + ((y - a[1]) / (b[1] - a[1])) * (b[0] - a[0]))
      .sort((a, b) => a - b);
    for (let k = 0; k + 1 < cuts.length; k += 2)
      row(sheet, i, Math.ceil(cuts[k] - 0.5), Math.ceil(cuts[k + 1] - 0.5) - 1, value);
  }
  for (const [a, b] of edges) stroke(sheet, a, b, 1, value);
}
function flood({ mask, width, height }, [x, y], value) {
  const start = Math.floor(y) * width + Math.floor(x), todo = [start];
  if (x < 0 || y < 0 || x >= width || y >= height || mask[start] === value) return;
  mask[start] = value;
  while (todo.length) {
    const at = todo.pop(), column = at % width;
    const beside = [at - width, at + width, column ? at - 1 : -1, column < width - 1 ? at + 1 : -1];
    for (const next of beside)
      if (next >= 0 && next < mask.length && mask[next] !== value) { mask[next] = value; todo.push(next); }
  }
}

// -- the sheet: the mask of the sample in view, with the steps that led to it; all views share it --

function openSheet(model) {
  const [height, width] = model.get("shape");
  const steps = new Map(), views = new Set();
  let sent = Promise.resolve();
  const sheet = {
    width, height, views, mask: new Uint8Array(width * height), index: -1, serial: -1, picture: null,
    steps() {
      if (!steps.has(sheet.index)) steps.set(sheet.index, { past: [], next: [] });
      return steps.get(sheet.index);
    },
    redraw: () => views.forEach((draw) => draw()),
    // What was done to the mask since `before` becomes a step, and Python hears of it.
    keep(before) {
      if (same(before, pack(sheet.mask))) return;
      sheet.note(before);
      sheet.send();
    },
    note(before) {
      const { past, next } = sheet.steps();
      past.push(before);
      if (past.length > STEPS) past.shift();
      next.length = 0;
    },
    go(from, to) {
      if (!from.length) return;
      to.push(pack(sheet.mask));
      unpack(from.pop(), sheet.mask);
      sheet.send();
    },
    undo() { const { past, next } = sheet.steps(); sheet.go(past, next); },
    redo() { const { past, next } = sheet.steps(); sheet.go(next, past); },
    clear() { const before = pack(sheet.mask); sheet.mask.fill(0); sheet.keep(before); },
    send() {
      const { index, serial } = sheet, bits = pack(sheet.mask);
      sent = sent.then(async () => {
        model.set("mask", { index, serial, bits: await through(bits, new CompressionStream("deflate")) });
        model.save_changes();
      });
      sheet.redraw();
    },
  };
  // Python chose another sample, or changed the mask of this one.
  async function take() {
    const { index, serial, bits } = model.get("mask");
    if (!(serial > sheet.serial)) return;
    const before = pack(sheet.mask), again = index === sheet.index;
    Object.assign(sheet, { index, serial });
    const found = await through(bits, new DecompressionStream("deflate"));
    if (serial !== sheet.serial) return;
    unpack(found, sheet.mask);
    if (again && !same(before, found)) sheet.note(before);
    sheet.redraw();
  }
  async function show() {
    const image = model.get("image");
    if (!image.byteLength) return;
    const picture = await createImageBitmap(new Blob([image]));
    if (image !== model.get("image")) return;
    sheet.picture = picture;
    sheet.redraw();
  }
  model.on("change:mask", take);
  model.on("change:image", show);
  take();
  show();
  return sheet;
}

// Colours of all pixels; gives how many are painted.
function colour({ mask, width }, colours) {
  const fine = mask.length > FINE, last = width - 1;
  let count = 0;
  for (let i = 0, x = 0; i < mask.length; i++, x = x === last ? 0 : x + 1) {
    if (!mask[i]) { colours[i] = 0; continue; }
    count++;
    const inner = x > 0 && x < last && mask[i - 1] && mask[i + 1] && mask[i - width] && mask[i + width];
    colours[i] = fine && !inner ? EDGE : PAINT;
  }
  return count;
}

// A line round all that is painted, in units of pixels.
function outline({ mask, width, height }) {
  const path = new Path2D(), at = (x, y) => (x < width && y < height && x >= 0 && y >= 0 ? mask[y * width + x] : 0);
  for (let y = 0; y <= height; y++)
    for (let x = 0, from = -1; x <= width; x++) {
      const edge = x < width && at(x, y) !== at(x, y - 1);
      if (edge && from < 0) from = x;
      if (!edge && from >= 0) { path.moveTo(from, y); path.lineTo(x, y); from = -1; }
    }
  for (let x = 0; x <= width; x++)
    for (let y = 0, from = -1; y <= height; y++) {
      const edge = y < height && at(x, y) !== at(x - 1, y);
      if (edge && from < 0) from = y;
      if (!edge && from >= 0) { path.moveTo(x, from); path.lineTo(x, y); from = -1; }
    }
  return path;
}

// -- a view of the sheet -------------------------------------------------------------------------

// Sets what has changed only, so that the page need not be laid out again.
const put = (part, name, value) => { if (part[name] !== value) part[name] = value; };

function button(name, key, title, press) {
  const made = document.createElement("button");
  made.type = "button";
  made.title = `${title} (${key})`;
  made.innerHTML = `${name}<kbd>${key}</kbd>`;
  made.addEventListener("click", press);
  return made;
}

function render(sheet, model, el) {
  const { width, height } = sheet, most = Math.max(1, Math.min(128, Math.max(width, height) >> 1));
  el.innerHTML = `<div class="rw-paint" data-jp-suppress-context-menu>
    <div class="rw-tools" role="toolbar" aria-label="Tools"></div>
    <div class="rw-tools"><label title="Diameter of brush and eraser in pixels (, and . or the wheel)">Size
      <input type="range" min="1" max="${most}" aria-label="Brush size"> <output></output></label></div>
    <canvas class="rw-stage" tabindex="0" role="application" title=""></canvas>
    <div class="rw-num" role="status" aria-live="polite"></div><div class="rw-hints">${HINTS}</div></div>`;
  const [tools, more, canvas, said] = el.firstChild.children;
  const [size, shown] = more.querySelectorAll("input,output");
  canvas.ariaLabel = `Picture to paint on, ${height} by ${width} pixels; arrows go, Space sets the pen down and up`;
  const tint = new OffscreenCanvas(width, height), pen = canvas.getContext("2d");
  const pixels = new ImageData(width, height), colours = new Uint32Array(pixels.data.buffer);
  let scale = 1, zoom = 1, origin = [0, 0], at = [Math.floor(width / 2) + 0.5, Math.floor(height / 2) + 0.5];
  let drag = null, pan = null, near = false, turned = 0, edges = null, count = 0, due = 0;

  const tool = () => model.get("tool"), brush = () => clamp(model.get("size"), 1, most);
  const set = (name, value) => { model.set(name, value); model.save_changes(); };
  const resize = (by) => set("size", clamp(brush() + by, 1, most));
  const buttons = Object.entries(TOOLS).map(([name, [text, key, title]]) => {
    const made = button(text, key, title, ({ detail }) => { set("tool", name); if (detail) canvas.focus(); });
    made.dataset.tool = name;
    return made;
  });
  tools.append(...buttons);
  // Keys call these, since a button may still be disabled from before the last stroke.
  const [back, again, nothing] = ["undo", "redo", "clear"].map((name) => () => stop() || sheet[name]());
  const undo = button("Undo", "Z", "Take the last stroke back", back);
  const redo = button("Redo", "Y", "Do it again", again);
  const clear = button("Clear", "Del", "Take all paint away", nothing);
  const out = button("Out", "−", "Show the picture smaller", () => magnify(1 / 1.5));
  const whole = button("1×", "0", "Show the whole picture", () => magnify(0));
  const into = button("In", "+", "Show the picture larger", () => magnify(1.5));
  more.append(undo, redo, clear, out, whole, into);
  // The notebook looks for this on what has the focus itself.
  for (const part of el.querySelectorAll("button,input,canvas")) part.dataset.lmSuppressShortcuts = "true";

  // Drawing: at most once a frame, from the mask that all views share.
  const draw = () => { edges = null; due ||= requestAnimationFrame(paint); };
  const refresh = () => { due ||= requestAnimationFrame(paint); };
  function paint() {
    due = 0;
    const dots = devicePixelRatio || 1, unit = scale * zoom, name = tool(), d = brush();
    if (!edges) {
      edges = sheet.mask.length > FINE ? new Path2D() : outline(sheet);
      count = colour(sheet, colours);
      tint.getContext("2d").putImageData(pixels, 0, 0);
    }
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.translate(...origin);
    pen.scale(unit, unit);
    pen.imageSmoothingEnabled = unit * dots < 2;
    if (sheet.picture) pen.drawImage(sheet.picture, 0, 0, width, height);
    pen.drawImage(tint, 0, 0);
    const line = (path, ...strokes) => {
      for (const [colour, thick] of strokes) {
        pen.strokeStyle = colour;
        pen.lineWidth = thick / unit;
        pen.stroke(path);
      }
    };
    line(edges, ["#000c", 3.5], ["#ff8a33", 1.5]);
    if (near || document.activeElement === canvas) {
      const round = name === "brush" || name === "eraser", cursor = new Path2D();
      const [x, y] = corner(at, round ? d : 1), r = (round ? d : 1) / 2;
      if (round && d > 2) cursor.arc(x + r, y + r, r, 0, 2 * Math.PI);
      else cursor.rect(x, y, 2 * r, 2 * r);
      if (name !== "move") line(cursor, ["#000", 3], [drag ? "#ffd24d" : "#fff", 1.25]);
    }
    const { past, next } = sheet.steps(), share = (100 * count) / sheet.mask.length;
    for (const item of buttons) put(item, "ariaPressed", `${item.dataset.tool === name}`);
    put(undo, "disabled", !past.length);
    put(redo, "disabled", !next.length);
    put(clear, "disabled", !count);
    put(whole.firstChild, "data", `${zoom < 10 ? +zoom.toFixed(1) : Math.round(zoom)}×`);
    put(size, "value", `${d}`);
    put(shown, "value", `${d} px`);
    put(said, "textContent", `row ${Math.floor(at[1])}, column ${Math.floor(at[0])}${drag ? " · pen down" : ""} · ` +
      `${count} of ${sheet.mask.length} pixels painted (${share.toFixed(share < 1 ? 2 : 1)} %)`);
    put(canvas.style, "cursor", pan ? "grabbing" : name === "move" ? "grab" : "crosshair");
  }

  // One stroke, by mouse, pen, finger or keyboard.
  function down(remove) {
    const name = tool(), value = remove || name === "eraser" ? 0 : 1;
    drag = { name, value, size: brush(), before: pack(sheet.mask), base: sheet.mask.slice(), points: [at] };
    if (name === "fill") flood(sheet, at, value);
    else go(at);
    if (name === "fill") up();
    draw();
  }
  function go(to) {
    const { name, value, points, base, size: wide } = drag;
    if (name === "brush" || name === "eraser") stroke(sheet, points.at(-1), to, wide, value);
    points.push(to);
    if (name === "rectangle" || name === "lasso") {
      sheet.mask.set(base);
      if (name === "lasso") enclose(sheet, points, value);
      else rectangle(sheet, points[0], to, value);
    }
    sheet.redraw();
  }
  function up() {
    const { before } = drag;
    drag = null;
    sheet.keep(before);
    draw();
  }
  function stop() {
    if (!drag) return false;
    sheet.mask.set(drag.base);
    drag = null;
    sheet.redraw();
    return true;
  }

  // Where the picture is.
  const box = () => canvas.getBoundingClientRect();
  const place = ({ clientX, clientY }) => {
    const { left, top } = box();
    return [(clientX - left - origin[0]) / (scale * zoom), (clientY - top - origin[1]) / (scale * zoom)];
  };
  function shift(x, y) {
    const low = [width, height].map((n) => n * scale * (1 - zoom));
    origin = [clamp(origin[0] + x, low[0], 0), clamp(origin[1] + y, low[1], 0)];
    refresh();
  }
  function magnify(factor, [x, y] = at) {
    const old = scale * zoom;
    zoom = clamp(zoom * factor, 1, Math.max(NEAR / scale, 4));
    shift(x * (old - scale * zoom), y * (old - scale * zoom));
  }
  function fit() {
    const room = Math.min(el.clientWidth || SIDE, SIDE), wide = Math.min(room, (SIDE * width) / height);
    const exact = wide / width;
    scale = exact >= 2 ? Math.floor(exact) : exact;
    const across = Math.round(width * scale), high = Math.round(height * scale);
    const dots = devicePixelRatio || 1;
    Object.assign(canvas, { width: Math.round(across * dots), height: Math.round(high * dots) });
    Object.assign(canvas.style, { width: `${across}px`, height: `${high}px` });
    shift(0, 0);
  }

  const on = (target, names, handler) =>
    names.split(" ").forEach((name) => target.addEventListener(name, handler, { passive: false }));
  on(canvas, "pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    event.preventDefault();
    if (drag) return;
    canvas.setPointerCapture(event.pointerId);
    at = place(event);
    if (event.button === 1 || tool() === "move") pan = [event.clientX, event.clientY];
    else down(event.altKey || event.button === 2);
    refresh();
  });
  on(canvas, "pointermove", (event) => {
    near = true;
    if (pan) {
      shift(event.clientX - pan[0], event.clientY - pan[1]);
      pan = [event.clientX, event.clientY];
    } else if (event.buttons || !drag) {
      const all = drag && event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      for (const one of all.length ? all : [event]) {
        at = place(one);
        if (drag) go(at);
      }
    }
    refresh();
  });
  on(canvas, "pointerup", () => { if (drag) up(); pan = null; refresh(); });
  on(canvas, "pointercancel", () => { stop(); pan = null; });
  on(canvas, "pointerleave", () => { near = false; refresh(); });
  on(canvas, "focus blur", refresh);
  on(canvas, "contextmenu", (event) => event.preventDefault());
  on(canvas, "wheel", (event) => {
    if (event.ctrlKey) magnify(event.deltaY < 0 ? 1.25 : 0.8, place(event));
    else if (document.activeElement === canvas) {
      turned -= event.deltaY;
      const by = Math.trunc(turned / 40);
      turned -= 40 * by;
      if (by) resize(clamp(by, -3, 3));
    } else return;  // the page scrolls
    event.preventDefault();
  });
  on(size, "input", () => set("size", +size.value));
  on(el.firstChild, "keydown", (event) => {
    const { key, target } = event, low = key.toLowerCase(), arrow = target === canvas && ARROWS[key];
    const chosen = Object.keys(TOOLS).find((name) => TOOLS[name][1].toLowerCase() === low);
    const command = event.ctrlKey || event.metaKey;
    if (low === "z" && !event.altKey) (event.shiftKey ? again : back)();
    else if (low === "y" && !event.altKey) again();
    else if (command) return;
    else if (arrow) {
      const far = event.shiftKey ? 8 : 1;
      const to = [0, 1].map((i) =>
        clamp(Math.floor(at[i]) + arrow[i] * far, 0, (i ? height : width) - 1) + 0.5);
      if (drag) go(to);
      at = to;
      shift(...[width, height].map((n, i) => {
        const v = at[i] * scale * zoom + origin[i], edge = Math.min(2 * scale, (n * scale) / 4);
        return clamp(v, edge, n * scale - edge) - v;
      }));
    } else if (target === canvas && key === " ") { if (drag) up(); else if (tool() !== "move") down(event.altKey); }
    else if (key === "Escape") { if (!stop()) return; }
    else if (key === "Delete" || key === "Backspace") nothing();
    else if (chosen && !drag) set("tool", chosen);
    else if (",[".includes(key)) resize(-1);
    else if (".]".includes(key)) resize(1);
    else if ("+=".includes(key)) magnify(1.5);
    else if ("-−".includes(key)) magnify(1 / 1.5);
    else if (key === "0") magnify(0);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const room = new ResizeObserver(fit);
  room.observe(el);
  sheet.views.add(draw);
  const traits = ["change:tool", "change:size"];
  traits.forEach((name) => model.on(name, refresh));
  fit();
  draw();
  return () => {
    room.disconnect();
    sheet.views.delete(draw);
    traits.forEach((name) => model.off(name, refresh));
    cancelAnimationFrame(due);
  };
}

export default () => {
  let sheet;
  return {
    initialize({ model }) { sheet = openSheet(model); },
    render: ({ model, el }) => render(sheet, model, el),
  };
};
