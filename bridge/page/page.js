// The page at the admin address. Once a second it polls page/data, and shows the counters and their rates. Ids and reasons are
// untrusted: they are written as text, never as HTML, which the Content-Security-Policy enforces.

const pollEvery = 1000 // ms
const fetchTimeout = 5000 // ms
const rateSpan = 5 // seconds over which a rate is computed
const chartSpan = 120 // seconds of a chart
const keptEvents = 500 // the same number as on the server
const keptRejects = 100
const shownRows = 200
const fates = ["accepted", "repeated", "other", "refused", "failed"]
const late = 2 // age in seconds above which the oldest unpublished event is reported

let run = "" // id of the server process
let last = 0 // position of the last event received
let events = [] // newest first
let samples = [] // counters of the last polls, oldest first
let polling = false
let timer = 0
let paused = false
let selected = null // event whose order history is shown
let shownStates = [] // events in the order history

const $ = id => document.getElementById(id)

// ---- polling --------------------------------------------------------------------------------------------------------

async function poll() {
  if (polling || document.hidden || !$("login").hidden) return
  polling = true
  clearTimeout(timer)
  try {
    const data = await fetchData()
    if (data) update(data)
  } finally {
    polling = false
    timer = setTimeout(poll, pollEvery)
  }
}

// fetchData returns the data of the server, or undefined after it has shown why there is none.
async function fetchData() {
  const token = sessionStorage.getItem("token")
  try {
    const answer = await fetch(`page/data?after=${last}`, {
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      cache: "no-store",
      signal: AbortSignal.timeout(fetchTimeout),
    })
    if (answer.status === 401) return requireToken()
    if (!answer.ok) throw new Error(`answered ${answer.status}`)
    const data = await answer.json()
    $("lost").hidden = true
    $("main").classList.remove("stale")
    return data
  } catch (error) {
    showLost(error)
  }
}

const tokenRejected = "The token was rejected."

function requireToken() {
  const had = sessionStorage.getItem("token")
  sessionStorage.removeItem("token")
  $("login-error").textContent = had ? tokenRejected : ""
  $("login").hidden = false
  $("main").hidden = true
  $("lost").hidden = true
  setState($("ready"), "off", "token required")
  $("token").focus()
}

$("login").addEventListener("submit", event => {
  event.preventDefault()
  const token = $("token").value.trim()
  $("token").value = ""
  if (/[^\x21-\x7e]/.test(token)) { // not valid in a header
    $("login-error").textContent = tokenRejected
    return
  }
  sessionStorage.setItem("token", token)
  $("login").hidden = true
  poll()
})

function showLost(error) {
  if (!$("lost").hidden) return
  const failure = error.message.startsWith("answered") ? `has ${error.message}` : "has not answered"
  $("lost").textContent = `postbridge ${failure} since ${clock(new Date())}. The data below is from that time.`
  $("lost").hidden = false
  $("main").classList.add("stale")
  setState($("ready"), "off", "no answer")
}

// update shows data of the server. After a restart of the server it discards the events and fetches all of them again.
function update(data) {
  if (run && data.run !== run) {
    run = ""
    last = 0
    events = []
    samples = []
    return
  }
  run = data.run
  last = data.last
  samples.push(sample(data))
  samples = samples.filter(s => s.seconds >= data.seconds - chartSpan)
  if (data.events.length > 0) addEvents(data.events)
  $("main").hidden = false
  show(data)
}

// sample returns the counters from which rates are computed.
function sample(data) {
  return { seconds: data.seconds, postbacks: data.status.postbacks, buses: data.status.buses, answers: data.answers, refused: data.refused }
}

function addEvents(added) {
  events = [...added.map(printable), ...events].sort((a, b) => b.sequence - a.sequence)
  let rejects = 0
  events = events.filter((e, i) => {
    const rejected = e.status === "rejected" && ++rejects <= keptRejects
    return i < keptEvents || rejected
  })
}

// printable replaces unprintable and bidirectional control characters with dots.
function printable(event) {
  const seen = v => typeof v === "string" ? v.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, ".") : v
  return Object.fromEntries(Object.entries(event).map(([name, v]) => [name, seen(v)]))
}

// ---- figures --------------------------------------------------------------------------------------------------------

// rate returns the increase of a counter per second, or null while it is unknown.
function rate(count) {
  const now = samples.at(-1)
  const before = samples.findLast(s => s.seconds <= now.seconds - rateSpan + 0.5) ?? samples[0]
  const seconds = now.seconds - before.seconds
  return seconds > 0 ? Math.max(0, (count(now) - count(before)) / seconds) : null
}

// quantile returns the quantile of the answer time in seconds, interpolated in its histogram bucket, or null without answers.
function quantile(part) {
  const grown = (bucket, i) => rate(s => s.answers.buckets?.[i]?.count ?? 0)
  const buckets = samples.at(-1).answers.buckets ?? []
  const all = rate(s => s.answers.count)
  if (!all) return null
  const rank = part * all
  let below = 0, floor = 0
  for (const [i, bucket] of buckets.entries()) {
    const count = grown(bucket, i)
    if (count >= rank) return floor + (bucket.seconds - floor) * (count > below ? (rank - below) / (count - below) : 1)
    below = count
    floor = bucket.seconds
  }
  return Infinity
}

// ---- format ---------------------------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 })
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 })

function perSecond(n) {
  if (n === null) return "–"
  return n >= 100 ? whole.format(n) : short.format(n)
}

function milliseconds(seconds) {
  if (seconds === null) return "–"
  if (seconds === Infinity) return "over 10 s"
  return seconds < 1 ? `${short.format(seconds * 1000)} ms` : `${short.format(seconds)} s`
}

function duration(seconds) {
  const s = Math.round(seconds)
  if (s < 60) return `${s} s`
  if (s < 3600) return `${Math.floor(s / 60)} min`
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`
}

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"]
  let i = 0
  while (n >= 1024 && i < units.length - 1) {
    n /= 1024
    i++
  }
  return `${short.format(n)} ${units[i]}`
}

// day returns the date, or "" for today.
function day(date) {
  const today = date.toDateString() === new Date().toDateString()
  return today ? "" : date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })
}

function clock(date) {
  return date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 })
}

// shorten truncates text for a list; the order history shows all of it.
const shorten = (text = "", most = 40) => text.length > most ? text.slice(0, most - 1) + "…" : text

const counted = (n, one, many) => `${whole.format(n)} ${n === 1 ? one : many}`

// busState describes the state of a bus.
function busState(bus) {
  const words = [bus.up ? "up" : `down: ${(bus.causes ?? []).join("; ")}`]
  const oldest = bus.oldest_waiting_seconds
  if (bus.waiting > 0 && (!bus.up || oldest >= late)) {
    words.push(`${counted(bus.waiting, "unpublished event", "unpublished events")}${oldest >= 1 ? `, the oldest for ${duration(oldest)}` : ""}`)
  }
  return words.join(bus.up ? ", " : "; ")
}

// ---- render ---------------------------------------------------------------------------------------------------------

function show(data) {
  const { status } = data
  setState($("ready"), status.ready ? "good" : "bad", status.ready ? "ready" : `not ready: ${status.not_ready}`)
  $("run").textContent = `up for ${duration(data.seconds)}${status.spool.id ? `, spool ${status.spool.id}` : ""}`
  showPostbacks(status.postbacks)
  showRefusals(data.refused)
  showBuses(status.buses)
  showSpool(status.spool)
  announce(status)
  if (!paused) showEvents()
  showHistory()
}

// make creates an element. Strings among the children become text nodes.
function make(name, properties, ...children) {
  const e = Object.assign(document.createElement(name), properties)
  e.append(...children)
  return e
}

function setState(e, kind, words) {
  e.className = `state ${kind}`
  setText(e, words)
}

// setText does not touch an unchanged text, which may be selected or be read out.
function setText(e, text) {
  if (e.textContent !== text) e.textContent = text
}

function setHead(table, ...names) {
  const head = table.tHead
  if (head.rows.length === 0) head.append(make("tr", {}, ...names.map(n => make("th", { scope: "col", className: n.className ?? "" }, n.name ?? n))))
}

// setRows replaces the rows of a table of counters; the first cell of each is its header. Without rows it shows the text none.
function setRows(table, rows, none) {
  const columns = table.tHead.rows[0].cells.length
  table.tBodies[0].replaceChildren(...rows.map(([name, ...cells]) =>
    make("tr", {}, make("th", { scope: "row" }, name), ...cells.map(c => make("td", {}, ...[c].flat())))))
  if (rows.length === 0) table.tBodies[0].append(make("tr", {}, make("td", { colSpan: columns, className: "note" }, none)))
}

function showPostbacks(postbacks) {
  const brokers = Object.keys(postbacks).sort()
  const total = (s, fate) => brokers.reduce((n, b) => n + (s.postbacks[b]?.[fate] ?? 0), 0)
  tiles($("answers"), [
    ["postbacks per second", perSecond(rate(s => total(s, "received")))],
    ["answer time p50", milliseconds(quantile(0.5))],
    ["answer time p99", milliseconds(quantile(0.99))],
  ])
  setHead($("brokers"), "Broker", ...fates)
  setRows($("brokers"), brokers.map(b => [b, ...fates.map(f => [
    perSecond(rate(s => s.postbacks[b]?.[f] ?? 0)), make("small", {}, whole.format(postbacks[b][f])),
  ])]), "no broker enabled")

  const steps = chartSteps((before, now) => fates.map(f => (total(now, f) - total(before, f)) / (now.seconds - before.seconds)))
  const most = drawChart($("postbacks-chart"), steps, fates)
  $("postbacks-chart").setAttribute("aria-label", `Postbacks per second in the last two minutes, maximum ${perSecond(most)}`)
  if (!$("postbacks-legend").hasChildNodes()) {
    $("postbacks-legend").append(...fates.map(f => make("span", { className: f }, f)), make("span", { id: "most" }))
  }
  setText($("most"), `last two minutes, maximum ${perSecond(most)}/s`)
}

function tiles(dl, pairs) {
  if (!dl.hasChildNodes()) dl.append(...pairs.map(([name]) => make("div", {}, make("dt", {}, name), make("dd"))))
  pairs.forEach(([, value], i) => setText(dl.children[i].lastChild, value))
}

function showRefusals(refused) {
  setHead($("refusals"), "Broker and reason", "per second", "since start")
  const rows = Object.entries(refused).sort().flatMap(([broker, reasons]) => Object.entries(reasons).sort().map(([reason, n]) => [
    `${broker}: ${reason}`, perSecond(rate(s => s.refused[broker]?.[reason] ?? 0)), whole.format(n),
  ]))
  setRows($("refusals"), rows, "none since start")
}

// chartSteps returns the values between each two samples.
function chartSteps(values) {
  return samples.slice(1).map((now, i) => values(samples[i], now).map(v => Math.max(0, v)))
}

// drawChart draws a stacked bar for each step, as wide as the time between its samples, with the last one at the right edge. It
// returns the height of the highest bar.
function drawChart(svg, steps, kinds) {
  const sums = steps.map(parts => parts.reduce((a, b) => a + b, 0))
  const most = Math.max(0, ...sums)
  const bars = []
  const begin = samples.at(-1).seconds - chartSpan
  steps.forEach((parts, i) => {
    const x = samples[i].seconds - begin, width = samples[i + 1].seconds - samples[i].seconds
    let y = 40
    parts.forEach((value, k) => {
      const height = most > 0 ? 38 * value / most : 0
      if (height === 0) return
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect")
      y -= height
      const attributes = { x, y, width, height, class: kinds[k] }
      for (const [name, v] of Object.entries(attributes)) bar.setAttribute(name, v)
      bars.push(bar)
    })
  })
  svg.replaceChildren(...bars)
  return most
}

function showBuses(buses) {
  const names = Object.keys(buses).sort()
  const cards = $("buses")
  for (const card of [...cards.children]) {
    if (!names.includes(card.dataset.bus)) card.remove()
  }
  if (names.length === 0) cards.replaceChildren(make("p", { className: "note" }, "The spool is not open yet."))
  names.forEach(name => showBus([...cards.children].find(c => c.dataset.bus === name) ?? addBus(cards, name), name, buses[name]))
}

function addBus(cards, name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  for (const [k, v] of Object.entries({ class: "chart", role: "img", viewBox: "0 0 120 40", preserveAspectRatio: "none" })) svg.setAttribute(k, v)
  const card = make("article", {},
    make("h3", {}, name), make("p", { className: "state" }), make("dl", { className: "tiles" }),
    make("figure", {}, svg, make("figcaption", { className: "legend" })), make("p", { className: "note" }))
  card.dataset.bus = name
  cards.append(card)
  return card
}

function showBus(card, name, bus) {
  const [, state, dl, figure, note] = card.children
  const kind = !bus.up ? "bad" : bus.waiting > 0 && bus.oldest_waiting_seconds >= late ? "slow" : "good"
  setState(state, kind, busState(bus))
  tiles(dl, [
    ["unpublished", whole.format(bus.waiting)],
    ["oldest unpublished", bus.waiting > 0 ? duration(bus.oldest_waiting_seconds) : "–"],
    ["stored per second", perSecond(rate(s => s.buses[name]?.stored ?? 0))],
    ["stored", whole.format(bus.stored)],
    ["dead letters", whole.format(bus.deadlettered)],
    ["quarantined", whole.format(bus.quarantined)],
    ["skipped", whole.format(bus.skipped)],
  ])
  const most = drawChart(figure.firstChild, chartSteps((_, now) => [now.buses[name]?.waiting ?? 0]), ["waiting"])
  figure.firstChild.setAttribute("aria-label", `Unpublished events of ${name} in the last two minutes, maximum ${whole.format(most)}`)
  setText(figure.lastChild, `unpublished events in the last two minutes, maximum ${whole.format(most)}`)
  setText(note, bus.last_error ? `last error since start: ${bus.last_error}` : "")
}

function showSpool(spool) {
  if (!spool.id) {
    setText($("spool"), "The spool is not open yet.")
    return
  }
  const part = spool.limit_bytes > 0 ? spool.waiting_bytes / spool.limit_bytes : 0
  $("fill").value = part
  const percent = part > 0 && part < 0.0001 ? "less than 0.01 %" : `${short.format(Math.round(10000 * part) / 100)} %`
  $("fill").title = percent
  setText($("spool"), `${bytes(spool.waiting_bytes)} of ${bytes(spool.limit_bytes)} unpublished (${percent}); ` +
    `${bytes(spool.bytes)} on disk, including published events. Disk: ${bytes(spool.free_bytes)} free, of which ` +
    `${bytes(spool.reserve_bytes)} are reserved. ${counted(spool.last, "event", "events")} since the spool was created.`)
}

// announce updates the text for screen readers, which read it out when a state changes.
function announce(status) {
  const states = [status.ready ? "ready" : "not ready"]
  for (const [name, bus] of Object.entries(status.buses)) states.push(`${name} is ${bus.up ? "up" : "down"}`)
  setText($("announcement"), states.join(", "))
}

// ---- events ---------------------------------------------------------------------------------------------------------

const kinds = {
  filled: "good", partially_filled: "good", rejected: "bad", cancelled: "off", expired: "off", unknown: "slow",
}

// columns of the lists. Narrow windows hide the classes wide and middle; the order history shows all values.
const columns = [
  { name: "Sequence", className: "wide number", of: e => whole.format(e.sequence) },
  { name: "Time", of: e => time(e) },
  { name: "Broker", className: "wide", of: e => e.broker },
  { name: "User", className: "middle", of: e => shorten(e.user_id, 24) },
  { name: "Order", className: "order", of: e => historyButton(e) },
  { name: "Status", of: e => badge(e) },
  { name: "Instrument", className: "middle whole", of: e => shorten(instrument(e)) },
  { name: "Filled", className: "number", of: e => filled(e) },
  { name: "Price", className: "middle number", of: e => shorten(price(e), 16) },
  { name: "Reason", className: "wide", of: e => shorten(e.reason, 160) },
]
const rejectColumns = columns.filter(c => c.name !== "Filled").map(c => c.name === "Reason" ? { name: "Reason", of: c.of } : c)

function time(e) {
  const date = new Date(e.received_at)
  return make("time", { dateTime: e.received_at, title: e.received_at }, make("small", {}, day(date)), " ", clock(date))
}

function historyButton(e) {
  const button = make("button", { type: "button", className: "history" }, e.order_id ? shorten(e.order_id, 24) : "not understood")
  button.addEventListener("click", () => {
    selected = e
    shownStates = []
    showHistory()
    $("history").showModal()
  })
  return button
}

function badge(e) {
  return make("span", { className: `state ${kinds[e.status] ?? "wait"}`, title: e.broker_status ?? "" }, e.status)
}

const instrument = e => [e.side, e.symbol ?? e.instrument_id, e.exchange && `(${e.exchange})`].filter(Boolean).join(" ")
const filled = e => e.quantity === undefined ? "" : `${whole.format(e.filled_quantity ?? 0)}/${whole.format(e.quantity)}`
const price = e => (e.filled_quantity > 0 && e.average_price) || e.price || ""

function matches(e) {
  const has = (text, part) => (text ?? "").toLowerCase().includes(part.trim().toLowerCase())
  return has(e.user_id, $("user").value) && has(e.order_id, $("order").value) &&
    ["", e.status].includes($("status").value)
}

function showEvents() {
  const today = new Date().toDateString()
  if (rowsDay !== today) {
    rowsOf = new WeakMap()
    rowsDay = today
  }
  const matching = events.filter(matches)
  const rejects = matching.filter(e => e.status === "rejected")
  showList($("events"), columns, "Latest events", matching, events.length)
  showList($("rejects"), rejectColumns, "Latest rejects", rejects, events.filter(e => e.status === "rejected").length)
}

let rowsOf = new WeakMap() // table -> event -> row
let rowsDay = "" // day on which the rows were created; the next day they are created again, with a date

// showList shows the newest events. It does not touch rows that remain, which keeps the focus and the selection.
function showList(table, columns, title, list, all) {
  setHead(table, ...columns)
  if (!rowsOf.has(table)) rowsOf.set(table, new WeakMap())
  const rows = rowsOf.get(table)
  const newest = list.slice(0, shownRows)
  const wanted = newest.map(e => {
    if (!rows.has(e)) rows.set(e, make("tr", {}, ...columns.map(c => make("td", { className: c.className ?? "" }, c.of(e)))))
    return rows.get(e)
  })
  const remaining = new Set(wanted)
  const body = table.tBodies[0]
  for (const row of [...body.rows]) {
    if (!remaining.has(row)) row.remove()
  }
  let at = body.firstElementChild
  for (const row of wanted) {
    if (row === at) at = at.nextElementSibling
    else body.insertBefore(row, at)
  }
  const some = newest.length < list.length ? `the newest ${newest.length} of ${list.length}` : `${list.length}`
  setText(table.caption, list.length < all ? `${title}: ${some} matching, of ${all}` : `${title}: ${some}`)
}

for (const id of ["user", "order", "status"]) $(id).addEventListener("input", showEvents)
$("filter").addEventListener("submit", event => event.preventDefault())
$("filter").addEventListener("reset", () => setTimeout(showEvents))
$("pause").addEventListener("click", () => {
  paused = !paused
  $("pause").setAttribute("aria-pressed", paused)
  $("pause").textContent = paused ? "Resume" : "Pause"
  if (!paused) showEvents()
})

// showHistory shows the states of the selected order, oldest first.
function showHistory() {
  if (!selected) return
  const states = events.filter(e => e === selected || selected.order_id !== undefined &&
    e.order_id === selected.order_id && e.user_id === selected.user_id && e.broker === selected.broker).reverse()
  if (states.length === 0 || states.every((e, i) => e === shownStates[i])) return
  shownStates = states
  setText($("history-title"), selected.order_id ? `Order ${selected.order_id}` : "Postback that was not understood")
  setText($("history-note"), [selected.broker, selected.user_id && `user ${selected.user_id}`, instrument(selected)].filter(Boolean).join(", ") +
    `. ${counted(states.length, "state", "states")} among the latest events, oldest first.`)
  $("states").replaceChildren(...states.map((e, i) => stateItem(e, states[i - 1])))
}

function stateItem(e, before) {
  const since = before ? new Date(e.received_at) - new Date(before.received_at) : 0
  const lines = [
    [filled(e) && `${filled(e)} filled`, e.cancelled_quantity > 0 && `${whole.format(e.cancelled_quantity)} cancelled`,
      e.pending_quantity > 0 && `${whole.format(e.pending_quantity)} pending`].filter(Boolean).join(", "),
    [e.order_type, e.price && `price ${e.price}`, e.trigger_price && `trigger ${e.trigger_price}`,
      e.average_price && `average ${e.average_price}`].filter(Boolean).join(", "),
    e.reason,
  ].filter(Boolean)
  return make("li", {},
    make("p", {}, time(e), " ", badge(e), e.broker_status ? ` ${e.broker_status}` : "", before ? make("small", {}, ` ${after(since)} later`) : ""),
    ...lines.map(text => make("p", {}, text)),
    make("p", { className: "note" }, `sequence ${whole.format(e.sequence)}, event ${e.id}, verified by ${e.verified_by}`))
}

function after(ms) {
  return ms < 60000 ? milliseconds(Math.max(0, ms) / 1000) : duration(ms / 1000)
}

$("history").addEventListener("close", () => { selected = null })
document.addEventListener("visibilitychange", poll)
poll()
