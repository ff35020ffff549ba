// Tokens as buttons, with the value curve under them. All text arrives as data and is set as textContent: none is parsed as HTML.
const SVG = "http://www.w3.org/2000/svg";

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

// One cell's piece of the curve: from the value before the token to the value after it, on a 100 by 100 plate.
function piece(cell, members) {
  const svg = shape("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
  const y = (v) => 100 - 100 * v;
  for (const member of members) {
    const part = cell.curve[member.name];
    if (!part) continue;
    const [a, b] = part;
    const line = { stroke: `var(--${member.key})`, "stroke-width": 2, "vector-effect": "non-scaling-stroke", fill: "none" };
    if (member.dash) line["stroke-dasharray"] = "4 3";
    svg.append(shape("polygon", { points: `0,${y(a[1])} 0,${y(a[2])} 100,${y(b[2])} 100,${y(b[1])}`, fill: `var(--${member.key})`, opacity: 0.14 }));
    svg.append(shape("polyline", { points: `0,${y(a[0])} 100,${y(b[0])}`, ...line }));
  }
  return svg;
}

function fill(tip, token) {
  tip.replaceChildren(make("div", "what", token.what));
  const table = make("table");
  const head = make("tr");
  for (const word of ["model", "log-prob.", "divergence", "share"]) head.append(make("th", "", word));
  table.append(head);
  for (const row of token.rows) {
    const line = make("tr");
    for (const word of row) line.append(make("td", "", word));
    table.append(line);
  }
  tip.append(table);
}

function place(tip, target) {
  tip.hidden = false;
  const at = target.getBoundingClientRect(), size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(at.left, innerWidth - size.width - 6))}px`;
  tip.style.top = `${at.bottom + size.height + 8 < innerHeight ? at.bottom + 6 : Math.max(6, at.top - size.height - 6)}px`;
}

export default function ({ data, parentElement, setTriggerValue }) {
  parentElement.querySelector(".strip")?.remove();
  parentElement.querySelector(".tip")?.remove();
  const strip = make("div", "strip"), tip = make("div", "tip");
  strip.setAttribute("role", "listbox");
  strip.setAttribute("aria-label", data.label);
  strip.setAttribute("aria-orientation", "horizontal");
  tip.hidden = true;
  tip.setAttribute("role", "tooltip");
  const buttons = [];
  if (data.members.length) {
    const axis = make("div", "cell axis"), scale = make("div", "");
    axis.setAttribute("aria-hidden", "true");
    for (const [word, top] of [["100%", "0"], ["0%", "34px"]]) {
      const label = make("span", "", word);
      label.style.top = `calc(3.35rem + ${top})`;
      scale.append(label);
    }
    axis.append(scale);
    strip.append(axis);
  }
  data.tokens.forEach((token, n) => {
    const cell = make("div", "cell");
    cell.setAttribute("role", "presentation");
    const button = make("button", `token k-${token.key}`, token.shown);
    button.setAttribute("role", "option");
    button.setAttribute("aria-selected", String(token.position === data.selected));
    button.setAttribute("aria-label", token.said);
    button.tabIndex = n === data.focus ? 0 : -1;
    button.onclick = () => setTriggerValue("token", token.position);
    button.onmouseenter = button.onfocus = () => { fill(tip, token); place(tip, button); };
    button.onmouseleave = button.onblur = () => { tip.hidden = true; };
    button.onkeydown = (event) => {
      const to = { ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: data.tokens.length - 1 }[event.key];
      if (event.key === "Escape") tip.hidden = true;
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); button.click(); }
      if (to === undefined || !buttons[to]) return;
      event.preventDefault();
      event.stopPropagation();
      button.tabIndex = -1;
      buttons[to].tabIndex = 0;
      buttons[to].focus();
    };
    buttons.push(button);
    const mark = make("div", "mark", token.mark);
    mark.setAttribute("aria-hidden", "true");
    if (token.pin) mark.append(" ", make("b", "", token.pin));
    cell.append(button, mark);
    if (data.members.length) {
      const plate = make("div", token.pin ? "curve pinned" : "curve");
      plate.setAttribute("aria-hidden", "true");
      plate.append(piece(token, data.members));
      cell.append(plate);
    }
    strip.append(cell);
  });
  parentElement.append(strip, tip);
}
