// The page at the admin address. Once a second it polls page/data, and shows the counters and their rates. Ids and reasons are
// untrusted: they are written as text, never as HTML, which the Content-Security-Policy enforces.

const pollEvery = 1000 // ms
const fetchTimeout = 5000 // ms
const rateSpan = 5 // seconds over which a rate is computed
const spans = { fine: 120, coarse: 3600 } // seconds of the charts
const spanNames = { fine: "last two minutes", coarse: "last hour" }
const keptEvents = 500 // the same number as on the server
const keptRejects = 100
const holdFor = 20000 // ms for which the lists hold still after a touch or a key
const fates = ["accepted", "repeated", "other", "refused", "failed"] // in the order of the points
const late = 2 // age in seconds above which the oldest unpublished event is reported
const soon = 6 * 3600 // seconds until the spool is full below which it is reported first

let run = "" // id of the server process
let last = 0 // position of the last event received
let events = [] // newest first
let samples = [] // counters of the last polls, oldest first
let past = { fine: [], coarse: [] } // points of the charts, oldest first
let pastUntil = -1 // seconds of the last point received
let serverTime = new Date()
let host = ""
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
    const answer = await fetch(`page/data?after=${last}&since=${pastUntil}`, {
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      cache: "no-store",
      signal: AbortSignal.timeout(fetchTimeout),
    })
    if (answer.status === 401) return requireToken()
    if (!answer.ok) throw new Error(`answered ${answer.status}`)
    const data = await answer.json()
    serverTime = new Date(answer.headers.get("Date") ?? Date.now())
    $("lost").hidden = true
    for (const id of ["main", "chips"]) $(id).classList.remove("stale")
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
  $("chips").replaceChildren()
  setState($("ready"), "off", "token required")
  showTitle("off", ["token required"])
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
  for (const id of ["main", "chips"]) $(id).classList.add("stale")
  setState($("ready"), "off", "no answer")
  showTitle("off", ["no answer"])
}

// update shows data of the server. After a restart of the server it discards the events and fetches all of them again.
function update(data) {
  if (run && data.run !== run) {
    run = ""
    last = 0
    events = []
    samples = []
    past = { fine: [], coarse: [] }
    pastUntil = -1
    return
  }
  run = data.run
  last = data.last
  samples.push(sample(data))
  samples = samples.slice(Math.max(0, samples.findLastIndex(s => s.seconds <= data.seconds - rateSpan)))
  pastUntil = data.history.fine.at(-1)?.seconds ?? pastUntil
  for (const [name, span] of Object.entries(spans)) {
    past[name] = [...past[name], ...data.history[name]].filter(p => p.seconds > data.seconds - span - 16)
  }
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

// since returns a time, and how long ago it was.
function since(text) {
  const date = new Date(text)
  const time = date.toLocaleTimeString("en-GB")
  return `since ${[day(date), time].filter(Boolean).join(" ")} (${duration(Math.max(0, serverTime - date) / 1000)})`
}

// at returns a time without its date if that is today.
const at = text => `${day(new Date(text))} ${new Date(text).toLocaleTimeString("en-GB")}`.trim()

// shorten truncates text for a list; the order history shows all of it.
const shorten = (text = "", most = 40) => text.length > most ? text.slice(0, most - 1) + "…" : text

const counted = (n, one, many) => `${whole.format(n)} ${n === 1 ? one : many}`

// busState describes the state of a bus.
function busState(bus) {
  const words = [bus.up ? "up" : `down ${since(bus.since)}: ${causes(bus)}`]
  const oldest = bus.oldest_waiting_seconds
  if (bus.waiting > 0 && (!bus.up || oldest >= late)) {
    words.push(`${counted(bus.waiting, "unpublished event", "unpublished events")}${oldest >= 1 ? `, the oldest for ${duration(oldest)}` : ""}`)
  }
  return words.join(bus.up ? ", " : "; ")
}

// causes lists the conditions of a bus. One that began later than the outage has its own time.
function causes(bus) {
  const later = c => new Date(c.since) - new Date(bus.since) > 1000
  return (bus.conditions ?? []).map(c => `${c.name}: ${c.error}${later(c) ? ` (since ${at(c.since)})` : ""}`).join("; ")
}

const busKind = bus => !bus.up ? "bad" : bus.waiting > 0 && bus.oldest_waiting_seconds >= late ? "slow" : "good"

// busChip describes the state of a bus in a few words.
function busChip(bus, spool) {
  return [bus.up ? "up" : `down ${since(bus.since)}`, busKind(bus) !== "good" && bus.waiting > 0 && `${whole.format(bus.waiting)} unpublished`,
    !bus.up && spool.full_in_seconds && `full in ${duration(spool.full_in_seconds)}`].filter(Boolean).join(", ")
}

// ---- render ---------------------------------------------------------------------------------------------------------

function show(data) {
  const { status } = data
  host = status.host
  setText($("host"), host)
  setState($("ready"), status.ready ? "good" : "bad", `ingest: ${status.ready ? "ready" : `not ready ${since(status.since)}: ${status.not_ready}`}`)
  setText($("run"), [status.version, `up for ${duration(data.seconds)}`, status.spool.id && `spool ${status.spool.id}`].filter(Boolean).join(", "))
  showChips(status)
  showPostbacks(data.seconds, status.postbacks)
  showRefusals(data.refused)
  showBuses(data.seconds, status.buses)
  showSpool(status)
  showWrong(status)
  announce(status)
  showLists()
  showHistory()
}

function showChips({ buses, spool }) {
  const chips = $("chips")
  const names = Object.keys(buses).sort()
  while (chips.children.length > names.length) chips.lastChild.remove()
  names.forEach((name, i) => setState(chips.children[i] ?? chips.appendChild(make("p")), busKind(buses[name]), `${name}: ${busChip(buses[name], spool)}`))
}

// showWrong puts first what is wrong, and says it in the title and the icon.
function showWrong({ ready, buses, spool }) {
  const down = Object.keys(buses).filter(name => !buses[name].up).sort()
  $("buses-section").classList.toggle("wrong", down.length > 0)
  $("spool-section").classList.toggle("wrong", !ready || spool.full_in_seconds < soon)
  const wrong = [!ready && "not ready", ...down.map(name => `${name} down`)].filter(Boolean)
  showTitle(wrong.length > 0 ? "bad" : "good", wrong)
}

const iconColors = { good: "#1f5fbf", bad: "#d0342c", off: "#777" }
const icon = fetch("page/icon.svg").then(answer => answer.text()).catch(() => "")
let iconKind = "good"

async function showTitle(kind, words) {
  document.title = [words.length > 0 ? `● ${words.join(", ")}` : "postbridge", host].filter(Boolean).join(" – ")
  if (kind === iconKind) return
  iconKind = kind
  const drawing = (await icon).replace(iconColors.good, iconColors[kind])
  $("icon").href = `data:image/svg+xml,${encodeURIComponent(drawing)}`
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

function showPostbacks(seconds, postbacks) {
  const brokers = Object.keys(postbacks).sort()
  tiles($("answers"), [
    ["postbacks/s", perSecond(rate(s => brokers.reduce((n, b) => n + (s.postbacks[b]?.received ?? 0), 0)))],
    ["answer time p50", milliseconds(quantile(0.5))],
    ["answer time p99", milliseconds(quantile(0.99))],
  ])
  setHead($("brokers"), "Broker", ...fates.map(f => ({ name: f, className: f }))) // and the legend of the charts
  setRows($("brokers"), brokers.map(b => [b, ...fates.map(f => [
    perSecond(rate(s => s.postbacks[b]?.[f] ?? 0)), make("small", {}, whole.format(postbacks[b][f])),
  ])]), "no broker enabled")

  const perStep = (before, now) => fates.map((_, i) => (now.postbacks[i] - before.postbacks[i]) / (now.seconds - before.seconds))
  for (const name of Object.keys(spans)) {
    const { most } = drawChart($("postbacks-charts"), name, seconds, "postbacks per second", perStep, fates)
    setText(chart($("postbacks-charts"), name).lastChild, `${spanNames[name]}, maximum ${perSecond(most)}/s`)
  }
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

// chart returns the figure of a chart, which it creates if need be.
function chart(parent, name) {
  const exists = [...parent.children].find(f => f.dataset.span === name)
  if (exists) return exists
  const svg = svgElement("svg", { class: "chart", role: "img", viewBox: `0 0 ${spans[name]} 40`, preserveAspectRatio: "none" })
  const figure = make("figure", {}, svg, make("figcaption"))
  figure.dataset.span = name
  return parent.appendChild(figure)
}

function svgElement(name, attributes) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name)
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v)
  return e
}

// drawChart draws a stacked bar of the values between each two points of the history, as wide as the time between them, and the
// times at which down returns true. The present is at the right edge. It returns the height of the highest bar, and
// whether there is anything to see.
function drawChart(parent, name, seconds, title, values, kinds, down = () => false) {
  const points = name === "coarse" ? [...past.coarse, ...past.fine.slice(-1)] : past.fine
  const steps = points.slice(1).map((p, i) => values(points[i], p).map(v => Math.max(0, v)))
  const most = Math.max(0, ...steps.map(parts => parts.reduce((a, b) => a + b, 0)))
  const bars = []
  steps.forEach((parts, i) => {
    const x = points[i].seconds - seconds + spans[name], width = points[i + 1].seconds - points[i].seconds
    if (down(points[i + 1])) bars.push(svgElement("rect", { x, y: 0, width, height: 40, class: "down" }))
    let y = 40
    parts.forEach((value, k) => {
      const height = most > 0 ? 38 * value / most : 0
      if (height === 0) return
      y -= height
      bars.push(svgElement("rect", { x, y, width, height, class: kinds[k] }))
    })
  })
  const svg = chart(parent, name).firstChild
  svg.replaceChildren(...bars)
  svg.setAttribute("aria-label", `${title} in the ${spanNames[name]}, maximum ${perSecond(most)}`)
  return { most, seen: bars.length > 0 }
}

function showBuses(seconds, buses) {
  const names = Object.keys(buses).sort()
  const cards = $("buses")
  for (const card of [...cards.children]) {
    if (!names.includes(card.dataset.bus)) card.remove()
  }
  if (names.length === 0) cards.replaceChildren(make("p", { className: "note" }, "The spool is not open yet."))
  names.forEach(name => showBus([...cards.children].find(c => c.dataset.bus === name) ?? addBus(cards, name), seconds, name, buses[name]))
}

function addBus(cards, name) {
  const card = make("article", {},
    make("div", { className: "title" }, make("h3", {}, name), make("p", { className: "state" })), make("dl", { className: "tiles" }),
    make("div", { className: "charts" }), make("p", { className: "note" }))
  card.dataset.bus = name
  cards.append(card)
  return card
}

function showBus(card, seconds, name, bus) {
  const [title, dl, charts, note] = card.children
  setState(title.lastChild, busKind(bus), busState(bus))
  tiles(dl, [
    ["unpublished", whole.format(bus.waiting)],
    ["oldest unpublished", bus.waiting > 0 ? duration(bus.oldest_waiting_seconds) : "–"],
    ["stored/s", perSecond(rate(s => s.buses[name]?.stored ?? 0))],
    ["stored", whole.format(bus.stored)],
    ["dead letters", whole.format(bus.deadlettered)],
    ["quarantined", whole.format(bus.quarantined)],
    ["skipped", whole.format(bus.skipped)],
  ])
  for (const span of Object.keys(spans)) {
    const { most, seen } = drawChart(charts, span, seconds, `unpublished events of ${name}`, (_, p) => [p.buses[name]?.waiting ?? 0], ["waiting"],
      p => p.buses[name]?.up === false)
    const figure = chart(charts, span)
    figure.hidden = !seen // nothing was unpublished
    setText(figure.lastChild, `unpublished events in the ${spanNames[span]}, maximum ${whole.format(most)}; red: down`)
  }
  const shown = !bus.last_error || (bus.causes ?? []).includes(bus.last_error)
  setText(note, shown ? "" : `last error ${at(bus.last_error_at)}${bus.up ? ", over" : ""}: ${bus.last_error}`)
}

function showSpool({ spool, ready }) {
  $("fill").parentElement.hidden = $("spool").hidden = !spool.id
  setText($("spool-note"), spool.id ? "" : "The spool is not open yet.")
  if (!spool.id) return
  const part = spool.limit_bytes > 0 ? spool.waiting_bytes / spool.limit_bytes : 0
  $("fill").value = part > 0 ? Math.max(part, 0.01) : 0 // visible
  const percent = part > 0 && part < 0.0001 ? "less than 0.01 %" : `${short.format(Math.round(10000 * part) / 100)} %`
  $("fill").title = percent
  const full = spool.full_in_seconds
  tiles($("spool"), [
    ["unpublished", `${bytes(spool.waiting_bytes)} of ${bytes(spool.limit_bytes)} (${percent})`],
    ["full at this rate in", !ready ? "not ready" : full ? duration(full) : "not filling"],
    ["on disk, published included", bytes(spool.bytes)],
    ["disk free", bytes(spool.free_bytes)],
    ["of it reserved", bytes(spool.reserve_bytes)],
    ["events since created", whole.format(spool.last)],
  ])
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

// columns of the lists. Narrow windows hide the classes wide and middle; a phone has the class narrow instead, below another
// value. The order history shows all values.
const columns = [
  { name: "Sequence", className: "wide number", of: e => [whole.format(e.sequence)] },
  { name: "Time", of: e => [time(e)] },
  { name: "Broker", className: "wide", of: e => [e.broker] },
  { name: "User", className: "middle", of: e => [elided(e.user_id)] },
  { name: "Order", className: "order", of: e => [historyButton(e), narrow(elided(e.user_id))] },
  { name: "Status", of: e => [badge(e), narrow([e.side, e.symbol ?? e.instrument_id].filter(Boolean).join(" "))] },
  { name: "Instrument", className: "middle whole", of: e => [shorten(instrument(e))] },
  { name: "Filled", className: "number", of: e => [filled(e), narrow(price(e))] },
  { name: "Price", className: "middle number", of: e => [price(e)] },
  { name: "Reason", className: "wide", of: e => [shorten(e.reason, 160)] },
]
const rejectColumns = columns.filter(c => c.name !== "Filled").map(c =>
  c.name === "Reason" ? { name: "Reason", of: c.of } : c.name === "Status" ? { ...c, className: "middle" } : c)

const narrow = content => make("small", { className: "narrow" }, content)

// elided shows the begin and the end of a long id.
function elided(id = "") {
  const tail = Math.max(0, id.length - 4)
  return make("span", { className: "id", title: id }, make("span", {}, id.slice(0, tail)), make("span", {}, id.slice(tail)))
}

function time(e) {
  const date = new Date(e.received_at)
  const [seconds, fraction] = clock(date).split(".")
  return make("time", { dateTime: e.received_at, title: e.received_at }, make("small", {}, day(date)), " ", seconds,
    make("span", { className: "middle" }, `.${fraction}`))
}

function historyButton(e) {
  const button = make("button", { type: "button", className: "history" }, e.order_id ? elided(e.order_id) : "not understood")
  button.addEventListener("click", () => {
    selected = e
    shownStates = []
    showHistory()
    $("history").showModal()
  })
  return button
}

function badge(e) {
  const words = e.status.split("_").flatMap((word, i) => i === 0 ? [word] : ["_", make("wbr"), word])
  return make("span", { className: `state ${kinds[e.status] ?? "wait"}`, title: e.broker_status ?? "" }, ...words)
}

const instrument = e => [e.side, e.symbol ?? e.instrument_id, e.exchange && `(${e.exchange})`].filter(Boolean).join(" ")
const filled = e => e.quantity === undefined ? "" : `${whole.format(e.filled_quantity ?? 0)}/${whole.format(e.quantity)}`
const price = e => shorten(e.filled_quantity > 0 && e.average_price ? `avg ${e.average_price}` : e.price, 20)

function matches(e) {
  const has = (text, part) => (text ?? "").toLowerCase().includes(part.trim().toLowerCase())
  return has(e.user_id, $("user").value) && has(e.order_id, $("order").value) &&
    ["", e.status].includes($("status").value)
}

// showLists updates the lists, unless they are paused or in use.
function showLists() {
  const still = newestShown > 0 && (paused || inUse())
  if (!still) showEvents()
  const added = events.filter(e => e.sequence > newestShown).length
  setText($("held"), still && added > 0 ? `${counted(added, "new event", "new events")}; the lists ${paused ? "are paused" : "hold still while in use"}` : "")
}

// inUse reports whether a list is hovered, touched or focused: its rows hold still, so that a click finds its row.
const inUse = () => hovered || Date.now() - used < holdFor

function showEvents() {
  const today = new Date().toDateString()
  if (rowsDay !== today) {
    rowsOf = new WeakMap()
    rowsDay = today
  }
  newestShown = events[0]?.sequence ?? 0
  $("clear").hidden = [$("user"), $("order"), $("status")].every(field => field.value === "")
  const latest = events.slice(0, keptEvents) // beyond are only rejects
  const rejects = events.filter(e => e.status === "rejected")
  showList($("events"), columns, "Latest events", latest, matchMedia("(max-width: 640px)").matches ? 20 : 50)
  showList($("rejects"), rejectColumns, "Latest rejects", rejects, 10)
}

let newestShown = 0 // sequence of the newest event when the lists were last updated
let hovered = false // the mouse is on a list
let used = 0 // time of the last touch or key
const expanded = new Set() // tables that show all rows
let rowsOf = new WeakMap() // table -> event -> row
let rowsDay = "" // day on which the rows were created; the next day they are created again, with a date

// showList shows the newest events that match the filter; the button below the table shows the others. It does not touch rows that
// remain, which keeps the focus and the selection.
function showList(table, columns, title, list, first) {
  setHead(table, ...columns)
  if (!rowsOf.has(table)) rowsOf.set(table, new WeakMap())
  const rows = rowsOf.get(table)
  const matching = list.filter(matches)
  const newest = matching.slice(0, expanded.has(table) ? keptEvents : first)
  const wanted = newest.map(e => {
    if (!rows.has(e)) rows.set(e, make("tr", {}, ...columns.map(c => make("td", { className: c.className ?? "" }, ...c.of(e)))))
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
  const some = newest.length < matching.length ? `the newest ${newest.length} of ${matching.length}` : `${matching.length}`
  setText(table.caption, matching.length < list.length ? `${title}: ${some} matching, of ${list.length}` : `${title}: ${some}`)
  const more = table.nextElementSibling
  more.hidden = matching.length <= first
  setText(more, expanded.has(table) ? `Show ${first}` : `Show all ${matching.length}`)
}

for (const table of [$("events"), $("rejects")]) {
  table.nextElementSibling.addEventListener("click", () => {
    if (!expanded.delete(table)) expanded.add(table)
    showEvents()
  })
}
$("lists").addEventListener("pointerenter", event => { hovered = event.pointerType === "mouse" })
$("lists").addEventListener("pointerleave", () => { hovered = false })
for (const name of ["touchstart", "touchmove", "keydown", "focusin"]) {
  $("lists").addEventListener(name, event => {
    if (name !== "focusin" || event.target.matches(":focus-visible")) used = Date.now() // not after a click
  }, { passive: true })
}
$("lists").addEventListener("focusout", () => { used = 0 })
for (const id of ["user", "order", "status"]) $(id).addEventListener("input", showEvents)
$("filter").addEventListener("submit", event => event.preventDefault())
$("filter").addEventListener("reset", () => setTimeout(showEvents))
$("pause").addEventListener("click", () => {
  paused = !paused
  $("pause").setAttribute("aria-pressed", paused)
  $("pause").textContent = paused ? "Resume" : "Pause"
  showLists()
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
