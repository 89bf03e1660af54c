"use strict"
const DATA = JSON.parse(document.getElementById("data").textContent)
const at = id => document.getElementById(id)
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim()
// plotly reads some tags in texts: angle brackets and ampersands are given as entities, so that a text is shown as it is.
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;")
const element = (tag, text, name) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (name) e.className = name; return e }
const points = x => x === null ? null : 100 * x

function layout(x, y, range) {
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true }
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("ink"), family: "inherit", size: 12 }, margin: { l: 48, r: 8, t: 8, b: 40 },
    legend: { orientation: "h", y: -0.25 }, hovermode: "closest", hoverlabel: { bgcolor: colour("wash"), font: { color: colour("ink") } },
    xaxis: { ...axis, title: { text: x } }, yaxis: { ...axis, title: { text: y }, range } }
}
const SETTINGS = { displayModeBar: false, responsive: true }
const interval = (rows, value, low, high, scale) => ({ type: "data", symmetric: false, thickness: 1, width: 3,
  array: rows.map(r => r[high] === null ? 0 : scale * Math.max(0, r[high] - r[value])), arrayminus: rows.map(r => r[low] === null ? 0 : scale * Math.max(0, r[value] - r[low])) })

function drawDoses() {
  const outcome = at("outcome").value
  for (const place of document.querySelectorAll("#dose-charts .chart")) {
    const rows = DATA.doses.filter(r => r.panel === place.dataset.panel && r.outcome === outcome), traces = []
    const symbols = ["circle-open", "square-open", "diamond-open", "triangle-up-open", "cross-open", "x-open", "star-open", "hexagon-open"]
    const kinds = [...new Set(rows.filter(r => r.kind !== "direction").map(r => r.kind))]
    kinds.forEach((kind, k) => {
      const own = rows.filter(r => r.kind === kind)
      traces.push({ name: plain(kind), mode: "markers", x: own.map(r => r.dose), y: own.map(r => points(r.rate)), opacity: .6,
        marker: { color: colour("cloud"), symbol: symbols[k % symbols.length], size: 7 }, text: own.map(r => plain(`${kind} ${r.draw}, n = ${r.n}`)), hovertemplate: "%{text}<br>coefficient %{x}: %{y:.0f}%<extra></extra>" })
    })
    const own = rows.filter(r => r.kind === "direction").sort((a, b) => a.dose - b.dose)
    traces.push({ name: "direction", mode: "lines+markers", x: own.map(r => r.dose), y: own.map(r => points(r.rate)), error_y: interval(own, "rate", "low", "high", 100),
      line: { color: colour(DATA.roles[outcome] || "incoherent"), width: 2.5 }, marker: { size: 8 }, text: own.map(r => `n = ${r.n}`), hovertemplate: "direction, %{text}<br>coefficient %{x}: %{y:.0f}%<extra></extra>" })
    // With many kinds of control their names are in the caption, and a point says its own.
    const shown = { ...layout("coefficient (times the direction)", `${outcome} answers (%)`, [-3, 103]), showlegend: kinds.length < 4 }
    shown.xaxis.autorange = "reversed"   // from no steering to most, as in the study's figures
    Plotly.react(place, traces, shown, SETTINGS)
    if (!place.dataset.listens && at("heard")) {
      place.dataset.listens = "1"
      const hear = event => { const p = event.points[0]; if (p.data.name === "direction") heard(place.dataset.panel, p.x) }
      place.on("plotly_hover", hear); place.on("plotly_click", hear)
    }
  }
}

function heard(panel, dose) {
  const said = DATA.answers.filter(r => r.panel === panel && (dose === 0 ? r.setting === "fine-tuned" : r.dose === dose)), box = at("heard")
  box.replaceChildren(element("p", said.length ? `${panel}, coefficient ${dose}: ${Math.min(8, said.length)} of ${said.length} answers` : `${panel}, coefficient ${dose}: no answers were kept`, "small"))
  for (const r of said.slice(0, 8)) {
    const line = element("p"); line.dir = "auto"
    line.append(element("strong", r.question), " ", element("span", r.outcome, "outcome " + kindOf(r)), " ", r.text)
    box.append(line)
  }
}
const kindOf = r => DATA.roles[r.outcome] || "incoherent"

function drawLayers() {
  for (const place of document.querySelectorAll("#layer-charts .chart")) {
    const rows = DATA.layers.filter(r => r.panel === place.dataset.panel && r.measure === place.dataset.measure).sort((a, b) => a.layer - b.layer)
    const traces = [{ name: plain(place.dataset.measure), mode: "lines+markers", x: rows.map(r => r.layer), y: rows.map(r => r.value), error_y: interval(rows, "value", "low", "high", 1),
      line: { color: colour("link"), width: 2 }, hovertemplate: "block %{x}: %{y:.3g}<extra></extra>" }]
    if (rows.some(r => r.null !== null)) traces.push({ name: "null", mode: "lines", x: rows.map(r => r.layer), y: rows.map(r => r.null), line: { color: colour("cloud"), dash: "dot" }, hovertemplate: "null, block %{x}: %{y:.3g}<extra></extra>" })
    Plotly.react(place, traces, { ...layout("block", plain(place.dataset.measure)), showlegend: traces.length > 1 }, SETTINGS)
  }
}

// Answers: one line a question, the settings side by side.
const PAGE = 20
let page = 0
function options(select, values, shown = String) { select.replaceChildren(...values.map(v => { const o = element("option", shown(v)); o.value = v; return o })) }
function ofPanel(panel) {
  const questions = new Map()
  for (const r of DATA.answers) if (r.panel === panel) { if (!questions.has(r.question)) questions.set(r.question, []); questions.get(r.question).push(r) }
  return questions
}
function columnsOf(panel, dose) {
  const settings = new Set(DATA.answers.filter(r => r.panel === panel).map(r => r.setting))
  return ["base", "fine-tuned", "steered"].filter(s => settings.has(s)).map(s => [s, r => r.setting === s && (s !== "steered" || r.dose === dose), s === "steered" ? `steered, dose ${dose}` : s])
}
function panelChanged() {
  const doses = [...new Set(DATA.answers.filter(r => r.panel === at("panel").value && r.setting === "steered").map(r => r.dose))].sort((a, b) => b - a)
  options(at("dose"), doses); at("dose").disabled = !doses.length
  const near = doses.find(d => d === -1); if (near !== undefined) at("dose").value = near
  doseChanged()
}
function doseChanged() {
  const before = at("whose").value, columns = columnsOf(at("panel").value, Number(at("dose").value))
  options(at("whose"), columns.map(c => c[0])); at("whose").value = columns.some(c => c[0] === before) ? before : columns.length ? columns[columns.length - 1][0] : ""
  page = 0; drawAnswers()
}
function found() {
  const columns = columnsOf(at("panel").value, Number(at("dose").value)), words = at("search").value.trim().toLowerCase(), kind = at("kind").value, rows = []
  for (const [question, answers] of ofPanel(at("panel").value)) {
    const cells = columns.map(([, mine]) => answers.filter(mine))
    const judged = cells[columns.findIndex(c => c[0] === at("whose").value)] || []
    if (kind && !judged.some(r => r.outcome === kind)) continue
    if (words && !question.toLowerCase().includes(words) && !cells.flat().some(r => r.text.toLowerCase().includes(words))) continue
    rows.push([question, cells])
  }
  return [columns, rows]
}
function drawAnswers() {
  const [columns, rows] = found(), last = Math.max(0, Math.ceil(rows.length / PAGE) - 1)
  page = Math.min(page, last)
  at("heads").replaceChildren(...["question", ...columns.map(c => c[2])].map(text => { const th = element("th", text); th.scope = "col"; return th }))
  at("rows").replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map(([question, cells]) => {
    const tr = element("tr"), head = element("th", question); head.scope = "row"; head.dir = "auto"; tr.append(head)
    for (const cell of cells) {
      const td = element("td"); td.dir = "auto"
      for (const r of cell) td.append(element("span", r.outcome, "outcome " + kindOf(r)), element("br"), r.text, element("br"))
      tr.append(td)
    }
    return tr
  }))
  at("back").disabled = page === 0; at("next").disabled = page === last
  at("count").textContent = rows.length ? `${page * PAGE + 1} to ${Math.min(rows.length, (page + 1) * PAGE)} of ${rows.length} questions` : "no question fits"
}
if (at("rows")) {
  options(at("panel"), [...new Set(DATA.answers.map(r => r.panel))])
  at("panel").onchange = panelChanged; at("dose").onchange = doseChanged
  for (const id of ["kind", "whose"]) at(id).onchange = () => { page = 0; drawAnswers() }
  at("search").oninput = () => { page = 0; drawAnswers() }
  at("back").onclick = () => { page--; drawAnswers() }; at("next").onclick = () => { page++; drawAnswers() }
  panelChanged()
}

// A cell that a spreadsheet would take for a formula is given as text.
const cell = v => { let t = v === null ? "" : String(v); if (typeof v === "string" && /^[=+\-@\t\r]/.test(t)) t = "'" + t; return /[",\n\r]/.test(t) ? '"' + t.replace(/"/g, '""') + '"' : t }
const csv = table => [table.columns, ...table.rows].map(row => row.map(cell).join(",")).join("\r\n") + "\r\n"
for (const button of document.querySelectorAll(".download")) {
  button.hidden = false
  button.onclick = () => {
    const table = DATA.tables[Number(button.dataset.table)], link = element("a")
    link.href = URL.createObjectURL(new Blob(["\ufeff" + csv(table)], { type: "text/csv;charset=utf-8" }))
    link.download = table.title.replace(/[^\p{L}\p{N}]+/gu, "-").toLowerCase() + ".csv"
    link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000)
  }
}

function draw() { if (at("dose-charts")) drawDoses(); if (at("layer-charts")) drawLayers() }
function theme(name) { document.documentElement.dataset.theme = name; at("theme").textContent = name === "dark" ? "Light" : "Dark"; at("theme").setAttribute("aria-label", `Show the page ${name === "dark" ? "light" : "dark"}`); draw() }
at("theme").hidden = false
at("theme").onclick = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark")
if (at("outcome")) at("outcome").onchange = drawDoses
let before
addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; theme("light"); for (const d of document.querySelectorAll("details")) if (d.querySelectorAll("tr").length < 60) d.open = true })
addEventListener("afterprint", () => theme(before))
theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
