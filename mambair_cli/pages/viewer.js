"use strict";

function add(parent, tag, attributes = {}, text) {
  const svg = "http://www.w3.org/2000/svg";
  const element = parent.namespaceURI === svg || tag === "svg"
    ? document.createElementNS(svg, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Pictures of one scene under a divider, which is dragged. The wheel or two fingers zoom, and what
// is enlarged is moved by dragging beside the divider.
// item: { width, height, views: [{ label, src }], spot: [x, y, side] or nothing }
// style: of the stage and what stands above it; freeWheel: zoom without the Ctrl key.
function viewer(parent, item, { style = "", freeWheel = false } = {}) {
  const choose = add(parent, "div", { class: "choose", style });
  const stage = add(parent, "div", { class: "stage", style: `${style};aspect-ratio:${item.width}/${item.height}` });
  const selects = [];
  for (const [side, chosen] of [["left", 0], ["right", 1]]) {
    const pane = add(stage, "div", { class: `pane ${side}` });
    const image = add(add(pane, "div", { class: "world" }), "img", { alt: "", draggable: "false" });
    const select = add(choose, "select", { class: side, "aria-label": `${side} side` });
    item.views.forEach((view, i) => add(select, "option", { value: i }, view.label));
    select.value = Math.min(chosen, item.views.length - 1);
    select.onchange = () => { image.src = item.views[select.value].src; image.alt = item.views[select.value].label; };
    select.onchange();
    selects.push(select);
  }
  if (item.spot) {
    const [x, y, side] = item.spot, share = (part, whole) => `${100 * part / whole}%`;
    add(add(stage, "div", { class: "world" }), "div", { class: "spot", style:
      `left:${share(x, item.width)};top:${share(y, item.height)};width:${share(side, item.width)};height:${share(side, item.height)}` });
  }
  const bar = add(stage, "div", { class: "bar" });
  const range = add(stage, "input", { type: "range", min: 0, max: 100, step: 0.1, value: 50, "aria-label": "divider" });
  range.oninput = () => stage.style.setProperty("--at", `${range.value}%`);
  const divide = share => { range.value = 100 * share; range.oninput(); };

  let zoom = 1, left = 0, top = 0;
  const inside = (value, low, high) => Math.min(Math.max(value, low), high);
  function place() {
    const { width, height } = stage.getBoundingClientRect();
    left = inside(left, width * (1 - zoom), 0);
    top = inside(top, height * (1 - zoom), 0);
    stage.style.setProperty("--x", `${left}px`);
    stage.style.setProperty("--y", `${top}px`);
    stage.style.setProperty("--zoom", zoom);
    stage.classList.toggle("zoomed", zoom > 1);
  }
  // Keeps the point of the picture that lies at x, y of the stage where it is.
  function zoomBy(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    const next = inside(zoom * factor, 1, 32);
    left = x - (x - left) * next / zoom;
    top = y - (y - top) * next / zoom;
    zoom = next;
    place();
  }

  const fingers = new Map();
  let moves = "";
  const at = event => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.x, event.clientY - box.y];
  };
  const spread = () => {
    const [[ax, ay], [bx, by]] = fingers.values();
    return { x: (ax + bx) / 2, y: (ay + by) / 2, length: Math.hypot(ax - bx, ay - by) };
  };
  stage.onpointerdown = event => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    range.focus({ preventScroll: true });
    moves = zoom === 1 || event.target === bar ? "bar" : "picture";
    if (fingers.size === 1 && moves === "bar") divide(at(event)[0] / stage.clientWidth);
  };
  stage.onpointermove = event => {
    if (!fingers.has(event.pointerId)) return;
    const before = fingers.size === 2 && spread();
    const [oldX, oldY] = fingers.get(event.pointerId), [x, y] = at(event);
    fingers.set(event.pointerId, [x, y]);
    if (before) {
      const after = spread();
      left += after.x - before.x;
      top += after.y - before.y;
      zoomBy(after.length / before.length, after.x, after.y);
    } else if (moves === "bar") {
      divide(x / stage.clientWidth);
    } else {
      left += x - oldX;
      top += y - oldY;
      place();
    }
  };
  stage.onpointerup = stage.onpointercancel = event => {
    fingers.delete(event.pointerId);
    // Or the finger that stays would move what the other one began with.
    if (fingers.size) moves = "picture";
  };
  stage.addEventListener("wheel", event => {
    if (!freeWheel && !event.ctrlKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), ...at(event));
  }, { passive: false });
  stage.ondblclick = event => zoom > 1 ? zoomBy(0) : zoomBy(4, ...at(event));
  new ResizeObserver(place).observe(stage);
  return { stage, selects, divide, zoomBy, position: () => range.value / 100 };
}
