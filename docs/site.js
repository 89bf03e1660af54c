// What pandoc's pages do beyond showing: search, one switch for all folded code, figures in full, light and dark.
// A page without this script shows everything all the same. Nothing is fetched but search.js, which lies beside this file.
"use strict"
const ROOT = new URL(".", document.currentScript.src)
const page = document.documentElement

// Kept between pages, where the browser lets a page keep anything.
const kept = {
  get: name => { try { return localStorage.getItem("em-repro-" + name) } catch { return null } },
  set: (name, value) => { try { localStorage.setItem("em-repro-" + name, value) } catch { } },
}
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value)
  node.append(...children)
  return node
}

// Light and dark: at once, before anything is drawn. The dark palette is a style sheet of its own.
const palette = document.getElementById("dark"), asks = "screen and (prefers-color-scheme: dark)"
const isDark = () => palette.media === "screen" || palette.media === asks && matchMedia(asks).matches
function paint(scheme) { palette.media = { dark: "screen", light: "not all" }[scheme] || asks }
paint(kept.get("scheme"))

function schemeSwitch() {
  const button = make("button", { type: "button" })
  const name = () => { button.textContent = isDark() ? "Light page" : "Dark page" }
  button.onclick = () => { const next = isDark() ? "light" : "dark"; kept.set("scheme", next); paint(next); name() }
  matchMedia(asks).addEventListener("change", name)
  name()
  return button
}

// Folded code
function codeSwitch() {
  const folds = [...document.querySelectorAll("details.fold.code")]
  if (!folds.length) return []
  const button = make("button", { type: "button" })
  const show = open => {
    for (const fold of folds) fold.open = open
    button.textContent = open ? "Hide all code" : "Show all code"
  }
  button.onclick = () => {
    const open = kept.get("code") !== "shown"
    const from = folds.find(fold => fold.getBoundingClientRect().bottom > 0)
    const before = from && from.getBoundingClientRect().top
    kept.set("code", open ? "shown" : "hidden")
    show(open)
    if (from && scrollY > 0) scrollBy(0, from.getBoundingClientRect().top - before)   // what is read stays where it is
  }
  show(kept.get("code") === "shown")
  return [button]
}
function unfold() {
  const at = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)))
  if (!at) return
  // a link to a name leads to the line above its cell
  const label = at.closest(".cell-label")
  for (const fold of [at.closest("details"), label && label.nextElementSibling && label.nextElementSibling.querySelector("details.code")]) {
    if (fold && !fold.open) { fold.open = true; at.scrollIntoView() }
  }
}

// Figures in full
function lightbox() {
  const links = document.querySelectorAll("a.zoom")
  if (!links.length || !window.HTMLDialogElement) return
  const picture = make("img", { alt: "" }), close = make("button", { type: "button" }, "Close")
  const view = make("div", { class: "view", tabindex: "0", role: "group", "aria-label": "The figure, which scrolls on a small screen" })
  const words = make("p"), file = make("a", {}, "Open the file")
  const dialog = make("dialog", { class: "figure-box", "aria-label": "Figure" }, make("form", { method: "dialog" }, close), view, words, file)
  document.body.append(dialog)
  close.onclick = () => dialog.close()
  dialog.onclick = event => { if (event.target === dialog) dialog.close() }
  for (const link of links) link.onclick = event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return
    event.preventDefault()
    const image = link.querySelector("img"), caption = link.closest("figure, .gallery-item")
    picture.src = image.src
    picture.alt = image.alt
    words.textContent = caption && caption.querySelector("figcaption") ? caption.querySelector("figcaption").textContent : image.alt
    file.href = link.href
    view.append(picture)
    dialog.showModal()
  }
}

// Search
let index = null
function loadIndex() {
  if (index) return Promise.resolve(index)
  return new Promise((found, failed) => {
    // as a script and not as json: a page that is opened as a file may load the one and not the other
    const script = make("script", { src: new URL("search.js", ROOT) })
    script.onload = () => { index = prepared(window.emReproSearch); found(index) }
    script.onerror = failed
    document.head.append(script)
  })
}
function prepared({ pages, names, sections }) {
  const entries = []
  for (const [at, anchor, name, signature, said] of names)
    entries.push({ kind: "name", title: name, note: signature, text: said, page: pages[at], anchor })
  for (const [at, anchor, heading, text] of sections)
    entries.push({ kind: anchor ? "section" : "page", title: heading, note: "", text, page: pages[at], anchor })
  for (const entry of entries)
    entry.low = [entry.title, entry.page[0], entry.text].map(words => words.toLowerCase())
  return entries
}
const starts = (text, word) => {
  for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1))
    if (!at || !/[\p{L}\p{N}]/u.test(text[at - 1])) return true
  return false
}
function score(entry, words, whole) {
  const [title, page, text] = entry.low
  let sum = 0
  for (const word of words) {
    const best = starts(title, word) ? 12 : title.includes(word) ? 6 : starts(page, word) ? 3 : starts(text, word) ? 2 : text.includes(word) ? 1 : 0
    if (!best) return 0
    sum += best
  }
  const last = title.slice(title.lastIndexOf(".") + 1)
  if (title === whole || last === whole) sum += entry.kind === "name" ? 40 : 30
  else if (title.startsWith(whole)) sum += 10
  return sum + { page: 4, name: 1, section: 0 }[entry.kind]
}
const MOST = 12
function matches(query) {
  const whole = query.trim().toLowerCase().replace(/\(\)$/, ""), words = whole.split(/\s+/).filter(Boolean)
  if (!words.length) return []
  const found = index.map(entry => ({ entry, words, points: score(entry, words, whole) })).filter(one => one.points)
  return found.sort((a, b) => b.points - a.points || a.entry.title.length - b.entry.title.length).slice(0, MOST)
}
function marked(text, words) {
  // parts of a text with what was searched for in <mark>; nothing of it is ever read as HTML
  const low = text.toLowerCase(), parts = []
  let at = 0
  while (at < text.length) {
    const next = words.map(word => [low.indexOf(word, at), word.length]).filter(([i]) => i >= 0).sort((a, b) => a[0] - b[0] || b[1] - a[1])[0]
    if (!next) break
    parts.push(text.slice(at, next[0]), make("mark", {}, text.slice(next[0], next[0] + next[1])))
    at = next[0] + next[1]
  }
  return [...parts, text.slice(at)]
}
function excerpt(entry, words) {
  const first = Math.min(...words.map(word => entry.low[2].indexOf(word)).filter(at => at >= 0), Infinity)
  const from = first === Infinity || first < 60 ? 0 : entry.text.indexOf(" ", first - 50) + 1
  const cut = entry.text.slice(from, from + 140)
  return (from ? "… " : "") + cut + (from + 140 < entry.text.length ? " …" : "")
}

function search() {
  const box = make("input", { type: "search", id: "search", role: "combobox", autocomplete: "off", spellcheck: "false", placeholder: "Search  /",
    "aria-label": "Search pages and functions; the slash key leads here", "aria-expanded": "false", "aria-controls": "search-found", "aria-autocomplete": "list" })
  const list = make("ul", { id: "search-found", role: "listbox", "aria-label": "What was found", hidden: "" })
  const said = make("p", { role: "status", class: "unseen" }), hint = make("p", { "aria-hidden": "true" })      // heard and seen
  const panel = make("div", { class: "panel", hidden: "" }, list, hint)
  const place = make("div", { role: "search", class: "search" }, box, panel, said)
  let chosen = -1
  const options = () => [...list.children]
  const choose = at => {      // -1: none
    const all = options()
    chosen = at
    all.forEach((option, i) => option.setAttribute("aria-selected", String(i === at)))
    if (at < 0) return box.removeAttribute("aria-activedescendant")
    box.setAttribute("aria-activedescendant", all[at].id)
    all[at].scrollIntoView({ block: "nearest" })
  }
  const show = (found, words) => {
    list.replaceChildren(...found)
    list.hidden = !found.length
    said.textContent = hint.textContent = words
    panel.hidden = !words
    box.setAttribute("aria-expanded", String(!!found.length))
    choose(-1)
  }
  const close = () => show([], "")
  const open = option => { close(); location.href = option.dataset.url }
  async function look() {
    const asked = box.value
    if (!asked.trim()) return close()
    try { await loadIndex() } catch { return show([], "The search needs the file search.js, which could not be loaded.") }
    if (asked !== box.value) return       // more was typed meanwhile
    const found = matches(asked)
    const said = { 0: "Nothing was found.", [MOST]: `The first ${MOST}; arrow keys and Enter choose.` }
    show(found.map(shown), said[found.length] || `${found.length} found; arrow keys and Enter choose.`)
  }
  function shown({ entry, words }, i) {
    const where = { name: "function or class, " + entry.page[0], section: entry.page[0], page: "page" }[entry.kind]
    const option = make("li", { role: "option", id: "search-found-" + i, "aria-selected": "false" },
      make(entry.kind === "name" ? "code" : "strong", {}, ...marked(entry.title, words)), " ",
      make("span", { class: "where" }, where), make("span", { class: "excerpt" }, ...marked(excerpt(entry, words), words)))
    option.dataset.url = new URL(entry.page[1] + (entry.anchor ? "#" + entry.anchor : ""), ROOT)
    option.onmousedown = event => event.preventDefault()      // the box keeps the focus until the click
    option.onclick = () => open(option)
    return option
  }
  box.addEventListener("focus", () => { loadIndex().catch(() => { }); if (box.value) look() })
  box.addEventListener("input", look)
  box.addEventListener("blur", close)
  box.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault()
      const many = options().length, step = event.key === "ArrowDown" ? 1 : -1
      if (many) choose(chosen < 0 ? (step > 0 ? 0 : many - 1) : (chosen + step + many) % many)
    } else if (event.key === "Enter") {
      const option = options()[Math.max(chosen, 0)]
      if (option) { event.preventDefault(); open(option) }
    } else if (event.key === "Escape") {
      event.preventDefault()
      if (panel.hidden) { box.value = ""; box.blur() }
      close()
    }
  })
  document.addEventListener("keydown", event => {
    const typing = event.target.closest && event.target.closest("input, textarea, select, [contenteditable]")
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); box.focus(); box.select() }
  })
  return place
}

document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("tools").append(search(), ...codeSwitch(), schemeSwitch())
  lightbox()
  unfold()
  addEventListener("hashchange", unfold)
})
