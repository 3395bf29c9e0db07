// Asks for what has changed and puts it where it belongs. The server has escaped everything; nothing is built from text
// here. The old page is changed into the new one piece by piece, so that focus, selection and scrolling stay.
"use strict";
(() => {
  const url = document.body.dataset.live;
  const link = document.getElementById("link");
  let tag = "", state = "quiet", lost = null, waiting = 0, skew = 0, slow = 5, held = false;

  function morph(from, to) {
    for (const { name } of [...from.attributes]) if (!to.hasAttribute(name) && name !== "open") from.removeAttribute(name);
    for (const { name, value } of [...to.attributes]) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
    const wanted = [...to.childNodes];
    wanted.forEach((next, index) => {
      const now = from.childNodes[index];
      if (!now) from.append(next);
      else if (now.nodeName !== next.nodeName) now.replaceWith(next);
      else if (now.nodeType !== Node.ELEMENT_NODE) { if (now.nodeValue !== next.nodeValue) now.nodeValue = next.nodeValue; }
      else if (!now.isEqualNode(next)) morph(now, next);
    });
    while (from.childNodes.length > wanted.length) from.lastChild.remove();
  }

  function show(found) {
    document.title = found.title;
    const spoken = document.getElementById("announcement");
    if (spoken.textContent !== found.announcement) spoken.textContent = found.announcement;
    for (const [id, markup] of Object.entries(found.parts)) {
      let part = document.getElementById(id);
      if (!part) {
        part = document.createElement("div");
        part.id = id;
        document.getElementById("content").append(part);
      }
      const template = document.createElement("template");
      template.innerHTML = markup;
      const next = part.cloneNode(false);
      next.append(template.content);
      morph(part, next);
    }
    for (const part of [...document.getElementById("content").children]) if (!(part.id in found.parts)) part.remove();
    tick();
    follow();
  }

  // Keep the current round in sight, until someone scrolls there themselves.
  function follow() {
    const current = document.querySelector(".rounds th.now");
    const box = current && current.closest(".scroll");
    if (!box || held) return;
    const right = current.offsetLeft + 3 * current.offsetWidth;
    if (right > box.scrollLeft + box.clientWidth) box.scrollLeft = right - box.clientWidth;
  }

  function say(next, text) {
    if (state === next && link.textContent === text) return;
    state = next;
    link.dataset.state = next;
    link.textContent = text;
  }

  async function look() {
    window.clearTimeout(waiting);
    try {
      const answer = await fetch(url, {
        headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store", signal: AbortSignal.timeout(20000),
      });
      const sent = Date.parse(answer.headers.get("Date"));
      if (!Number.isNaN(sent)) skew = Math.abs(sent - Date.now()) > 2000 ? sent - Date.now() : 0;
      if (answer.status === 200) {
        const found = await answer.json();
        show(found);
        slow = found.poll_s;
        tag = answer.headers.get("ETag") || "";
      } else if (answer.status !== 304) {
        throw new Error(String(answer.status));
      }
      lost = null;
      say("live", "live");
    } catch {
      lost = lost || new Date();
      tag = "";
      say("lost", `no answer since ${lost.toTimeString().slice(0, 8)}, trying again`);
    }
    // A page that nobody looks at asks rarely: its title still tells how far the run is.
    waiting = window.setTimeout(look, 1000 * (document.hidden ? 15 : lost ? 3 : slow));
  }

  function spell(seconds) {
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
    if (s >= 172800) return `${Math.floor(s / 86400)} days`;
    return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  }

  function tick() {
    for (const place of document.querySelectorAll("[data-done-by]")) {
      const left = Number(place.dataset.doneBy) - (Date.now() + skew) / 1000;
      const text = left > 0 ? spell(left) : "a moment";
      if (place.textContent !== text) place.textContent = text;
    }
    for (const place of document.querySelectorAll("[data-since]")) {
      const text = `${spell((Date.now() + skew) / 1000 - Number(place.dataset.since))} ago`;
      if (place.textContent !== text) place.textContent = text;
    }
  }

  for (const kind of ["wheel", "pointerdown", "keydown"]) {
    document.addEventListener(kind, (event) => { held = held || Boolean(event.target.closest && event.target.closest(".scroll")); }, { passive: true });
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  window.setInterval(tick, 1000);
  look();
})();
