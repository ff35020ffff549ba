"use strict";
// Tooltips for marks and tokens, and links into closed lists. Everything is set as text, never as markup; nothing is fetched.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);

  const said = new WeakMap();
  for (const mark of document.querySelectorAll("svg .tip")) {
    const title = mark.querySelector("title");
    if (!title) continue;
    said.set(mark, title.textContent);
    title.remove(); // or the browser shows its own as well
  }
  for (const token of document.querySelectorAll(".token[title]")) {
    said.set(token, token.title);
    token.setAttribute("aria-label", `${token.innerText.replace(/\s+/g, " ")}: ${token.title}`);
    token.setAttribute("role", "img");
    token.removeAttribute("title");
  }

  const hide = () => { tip.hidden = true; };
  const show = (event) => {
    const mark = event.target.closest?.(".tip, .token");
    const words = mark && said.get(mark);
    if (!words) return hide();
    tip.textContent = words.replaceAll(" · ", "\n");
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, event.clientX - box.width / 2), innerWidth - box.width - 8);
    const above = event.clientY - box.height - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 8 ? above : event.clientY + 18}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  addEventListener("scroll", hide, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // A link to a finding opens the list it is in.
  const reveal = () => {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const list = row?.closest("details");
    if (list && !list.open) { list.open = true; row.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
