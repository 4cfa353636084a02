"use strict";
// The dashboard's page asks what the study does, again and again, and for its content where that has
// changed. Goes on from report.js: content, byId, element, drawAll.

const shown = { tag: null, version: null, words: {} }; // what the page has now

/** Show what the study does. Elements that are as before stay, with what is selected in them. */
function showState(html) {
  const home = byId("live");
  const parts = [...element("template", "", { innerHTML: html }).content.children];
  for (const [place, part] of parts.entries()) {
    const before = home.children[place];
    if (!before) home.append(part);
    else if (!before.isEqualNode(part)) before.replaceWith(part);
  }
  for (const after of [...home.children].slice(parts.length)) after.remove();
}

/** Show new content. Words that are as before stay, and what the reader has opened stays open. */
function showContent() {
  document.querySelector("h1").textContent = content.title;
  for (const id of ["answer", "seen", "reproduce"]) {
    if (!content[id] || shown.words[id] === content[id]) continue;
    const open = [...byId(id).querySelectorAll("details[open]")].map(fold => fold.id);
    byId(id).outerHTML = content[id];
    for (const fold of open) byId(fold).open = true;
    shown.words[id] = content[id];
  }
  drawAll();
}

async function fetchContent(version) {
  const headers = shown.tag ? { "If-None-Match": shown.tag } : {};
  const answer = await fetch("content", { headers });
  if (answer.status === 200) {
    content = await answer.json();
    shown.tag = answer.headers.get("ETag");
    showContent();
  }
  if (answer.ok || answer.status === 304) shown.version = version;
}

async function refresh() {
  const began = performance.now();
  const contact = byId("contact");
  try {
    const answer = await fetch("live");
    const live = await answer.json();
    showState(live.html);
    contact.hidden = true;
    if (live.version && live.version !== shown.version) await fetchContent(live.version);
    document.title = `${live.brief} · ${content.title}`;
  } catch (error) {
    contact.textContent =
      "The dashboard does not answer: what stands here is the last that it said.";
    contact.hidden = false;
  }
  // a large study takes seconds to read: asked for at most a tenth of the time
  setTimeout(refresh, Math.max(2000, 10 * (performance.now() - began)));
}

refresh();
