"use strict";
/* Sorts, filters, pages, compares and enlarges the cards that the page carries. Builds nothing from text: a card's markup
   was escaped where it was made, and everything else is set as an attribute or as plain text. */
(() => {
  const $ = (id) => document.getElementById(id);
  const { page_size: pageSize, names, rows } = JSON.parse($("records").textContent);
  const at = Object.fromEntries(names.map((name, column) => [name, column]));
  const list = $("cards"), dialog = $("zoom"), sort = $("sort");
  const filters = [...document.querySelectorAll("[data-filter]")];
  const waiting = $("more").textContent.split("\n");
  const made = [...list.children];
  const standing = made.length;
  const place = new Map(rows.map((row, order) => [row[at.index], order]));
  let shown = rows.map((_, order) => order), page = 0, enlarged = -1;

  const by = (column, sign) => (a, b) => sign * (rows[a][column] - rows[b][column]) || a - b;
  const orders = {
    best: (a, b) => a - b, worst: (a, b) => b - a, gain: by(at.gain, -1), small: by(at.changed, 1),
    large: by(at.changed, -1), position: by(at.index, 1),
  };

  function element(tag, attributes = {}, text = "") {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    return node;
  }

  /* Returns the card of an item, made when it is first asked for; `order` is its place from the best to the worst. */
  function card(order) {
    if (!made[order]) {
      const template = document.createElement("template");
      template.innerHTML = waiting[order - standing];
      made[order] = template.content.firstElementChild;
    }
    if (!made[order].classList.contains("compared")) compare(made[order], order);
    return made[order];
  }

  /* Lays the scan over its edit, under a slider that the browser itself makes work by mouse, touch and keyboard. */
  function compare(node, order) {
    const decoded = node.querySelector(".decoded");
    const [before, after] = [decoded ?? node.querySelector(".scan"), node.querySelector(".counterfactual")];
    const over = before.querySelector("img");
    over.classList.add("over");
    const box = element("div", { class: "compare" });
    const slider = element("input", {
      type: "range", min: 0, max: 100, step: 2, value: 50, "aria-label": `Scan ${rows[order][at.index]}: scan on the left, edited on the right`,
    });
    box.append(after.querySelector("img"), over, element("span", { class: "line" }), slider);
    const caption = element("figcaption");
    caption.append(element("span", {}, decoded ? "◀ Decoded scan" : "◀ Scan"), element("span", {}, "Edited ▶"));
    after.replaceChildren(box, caption);
    after.className = "comparison";
    before.remove();
    slide(slider);
    node.querySelector(".head").append(element("button", { type: "button", class: "zoom", "aria-label": `Enlarge scan ${rows[order][at.index]}` }, "Enlarge"));
    node.dataset.order = order;
    node.classList.add("compared");
  }

  function slide(slider) {
    slider.parentElement.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value}% scan, ${100 - slider.value}% edited`);
  }

  function fits(row) {
    return filters.every(({ value, dataset: { filter } }) => {
      const own = row[at[filter]];
      return value === "" || (Array.isArray(own) ? own.includes(Number(value)) : own === Number(value));
    });
  }

  const whole = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, "\u202f");

  function choose() {
    shown = rows.map((_, order) => order).filter((order) => fits(rows[order])).sort(orders[sort.value]);
    for (const filter of filters) filter.classList.toggle("active", filter.value !== "");
    $("reset").disabled = sort.value === "best" && filters.every(({ value }) => value === "");
    turn(0);
  }

  function turn(next) {
    const last = Math.max(0, Math.ceil(shown.length / pageSize) - 1);
    page = Math.min(Math.max(next, 0), last);
    const part = shown.slice(page * pageSize, (page + 1) * pageSize);
    list.replaceChildren(...part.map(card));
    $("nothing").hidden = shown.length > 0;
    const all = shown.length === rows.length;
    $("count").textContent = `${whole(shown.length)} ${all ? "" : `of ${whole(rows.length)} `}${rows.length === 1 ? "scan" : "scans"}`;
    document.querySelector(".pager").hidden = last === 0;
    $("range").textContent = `${whole(page * pageSize + 1)}–${whole(page * pageSize + part.length)} of ${whole(shown.length)}`;
    $("previous-page").disabled = page === 0;
    $("next-page").disabled = page === last;
  }

  function leaf(step) {
    turn(page + step);
    list.scrollIntoView();
    if (list.firstElementChild) list.firstElementChild.focus({ preventScroll: true });
  }

  /* Goes to the page on which a card stands; filters that would hide it are taken off. */
  function reveal(order) {
    if (!shown.includes(order)) reset();
    turn(Math.floor(shown.indexOf(order) / pageSize));
    for (const other of list.querySelectorAll(".found")) other.classList.remove("found");
    return card(order);
  }

  function reset() {
    sort.value = "best";
    for (const filter of filters) filter.value = "";
    choose();
  }

  function enlarge(position) {
    enlarged = Math.min(Math.max(position, 0), shown.length - 1);
    const copy = card(shown[enlarged]).cloneNode(true);
    copy.removeAttribute("id");
    copy.classList.remove("found");
    for (const image of copy.querySelectorAll("img")) image.loading = "eager";
    const own = card(shown[enlarged]).querySelector("input");
    const slider = copy.querySelector("input");
    slider.value = own.value;
    slide(slider);
    $("zoom-card").replaceChildren(copy);
    $("zoom-position").textContent = `${whole(enlarged + 1)} of ${whole(shown.length)}`;
    const [previous, next] = [$("zoom-previous"), $("zoom-next")];
    if ((enlarged === 0 && document.activeElement === previous) || (enlarged === shown.length - 1 && document.activeElement === next)) dialog.focus();
    previous.disabled = enlarged === 0;
    next.disabled = enlarged === shown.length - 1;
    if (!dialog.open) {
      dialog.showModal();
      dialog.focus();
    }
  }

  document.addEventListener("input", ({ target }) => {
    if (target.matches(".compare input")) slide(target);
  });
  document.addEventListener("click", ({ target }) => {
    const node = target.closest("#cards .card");
    if (node && target.closest(".zoom, .difference img")) enlarge(shown.indexOf(Number(node.dataset.order)));
    else if (target === dialog) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    enlarge(enlarged + step);
  });
  dialog.addEventListener("close", () => {
    const node = reveal(shown[enlarged]);
    node.scrollIntoView({ block: "nearest" });
    node.querySelector(".zoom").focus({ preventScroll: true });
  });
  $("zoom-previous").addEventListener("click", () => enlarge(enlarged - 1));
  $("zoom-next").addEventListener("click", () => enlarge(enlarged + 1));
  $("zoom-close").addEventListener("click", () => dialog.close());
  $("previous-page").addEventListener("click", () => leaf(-1));
  $("next-page").addEventListener("click", () => leaf(1));
  $("reset").addEventListener("click", () => { reset(); sort.focus(); });
  for (const control of [sort, ...filters]) control.addEventListener("change", choose);

  function follow() {
    const order = place.get(Number((/^#scan-(\d+)$/.exec(location.hash) || [])[1]));
    if (order === undefined) return;
    const node = reveal(order);
    node.classList.add("found");
    node.scrollIntoView({ block: "start" });
  }

  document.documentElement.classList.add("scripted");
  const tools = document.querySelector(".tools");
  tools.hidden = false;
  tools.open = !matchMedia("(max-width: 30rem)").matches;
  choose();
  window.addEventListener("hashchange", follow);
  follow();
})();
