// The page at the admin address. Once a second it asks page/data, makes rates of what was counted, and shows both. Ids and
// reasons come from outside: they are written as text, never as HTML, and the Content-Security-Policy holds that.

const pollEvery = 1000 // ms
const patience = 5000 // ms, for an answer
const rateSpan = 5 // seconds that a rate is made over
const chartSpan = 120 // seconds in a chart
const keptEvents = 500 // as many as the server keeps
const keptRejects = 100
const shownRows = 200
const fates = ["accepted", "repeated", "refused", "failed"]
const late = 2 // seconds after which a waiting event is worth a word

let run = "" // of the process that answers
let last = 0 // the place of the last event we have
let events = [] // the newest first
let samples = [] // what was counted at the last polls, the oldest first
let polling = false
let timer = 0
let held = false
let way = null // the event whose order is shown
let shownStates = [] // of that order

const $ = id => document.getElementById(id)

// ---- asking ---------------------------------------------------------------------------------------------------------

async function poll() {
  if (polling || document.hidden || !$("ask").hidden) return
  polling = true
  clearTimeout(timer)
  try {
    const data = await ask()
    if (data) take(data)
  } finally {
    polling = false
    timer = setTimeout(poll, pollEvery)
  }
}

// ask returns what was answered, or nothing if there is nothing to show; then the page says why.
async function ask() {
  const token = sessionStorage.getItem("token")
  try {
    const answer = await fetch(`page/data?after=${last}`, {
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      cache: "no-store",
      signal: AbortSignal.timeout(patience),
    })
    if (answer.status === 401) return askForToken()
    if (!answer.ok) throw new Error(`answers ${answer.status}`)
    const data = await answer.json()
    $("lost").hidden = true
    $("main").classList.remove("stale")
    return data
  } catch (error) {
    sayLost(error)
  }
}

const notTaken = "The token was not taken."

function askForToken() {
  const had = sessionStorage.getItem("token")
  sessionStorage.removeItem("token")
  $("refused-token").textContent = had ? notTaken : ""
  $("ask").hidden = false
  $("main").hidden = true
  $("lost").hidden = true
  setState($("ready"), "off", "wants a token")
  $("token").focus()
}

$("ask").addEventListener("submit", event => {
  event.preventDefault()
  const token = $("token").value.trim()
  $("token").value = ""
  if (/[^\x21-\x7e]/.test(token)) { // no header can carry it
    $("refused-token").textContent = notTaken
    return
  }
  sessionStorage.setItem("token", token)
  $("ask").hidden = true
  poll()
})

function sayLost(error) {
  if (!$("lost").hidden) return
  const what = error.message.startsWith("answers") ? error.message : "does not answer"
  $("lost").textContent = `postbridge ${what} since ${clock(new Date())}. What is shown is of then.`
  $("lost").hidden = false
  $("main").classList.add("stale")
  setState($("ready"), "off", "no answer")
}

// take shows what was answered. The first answer of another run has only some of its events: all are asked for anew.
function take(data) {
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
  if (data.events.length > 0) keep(data.events)
  $("main").hidden = false
  show(data)
}

// sample is what of an answer later rates need.
function sample(data) {
  return { seconds: data.seconds, postbacks: data.status.postbacks, buses: data.status.buses, answers: data.answers, refused: data.refused }
}

function keep(news) {
  events = [...news.map(printable), ...events].sort((a, b) => b.sequence - a.sequence)
  let rejects = 0
  events = events.filter((e, i) => {
    const rejected = e.status === "rejected" && ++rejects <= keptRejects
    return i < keptEvents || rejected
  })
}

// printable has a dot in place of each character that cannot be seen, or that turns others around.
function printable(event) {
  const seen = v => typeof v === "string" ? v.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, ".") : v
  return Object.fromEntries(Object.entries(event).map(([name, v]) => [name, seen(v)]))
}

// ---- figures --------------------------------------------------------------------------------------------------------

// rate is by how much a count grows per second; null while that is not known.
function rate(count) {
  const now = samples.at(-1)
  const before = samples.findLast(s => s.seconds <= now.seconds - rateSpan + 0.5) ?? samples[0]
  const seconds = now.seconds - before.seconds
  return seconds > 0 ? Math.max(0, (count(now) - count(before)) / seconds) : null
}

// quantile is the time that this part of the last answers took at most, between two bounds of the histogram; null without
// answers.
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

// ---- words ----------------------------------------------------------------------------------------------------------

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

// day is a date, unless it is today's.
function day(date) {
  const today = date.toDateString() === new Date().toDateString()
  return today ? "" : date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })
}

function clock(date) {
  return date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 })
}

// shorten is for the list, of what the way of an order has in full.
const shorten = (text = "", most = 40) => text.length > most ? text.slice(0, most - 1) + "…" : text

const counted = (n, one, many) => `${whole.format(n)} ${n === 1 ? one : many}`

// busWords is the state of a bus.
function busWords(bus) {
  const words = [bus.up ? "up" : `down: ${(bus.causes ?? []).join("; ")}`]
  const oldest = bus.oldest_waiting_seconds
  if (bus.waiting > 0 && (!bus.up || oldest >= late)) {
    words.push(`${counted(bus.waiting, "event waits", "events wait")}${oldest >= 1 ? `, the oldest for ${duration(oldest)}` : ""}`)
  }
  return words.join(bus.up ? ", " : "; ")
}

// ---- showing --------------------------------------------------------------------------------------------------------

function show(data) {
  const { status } = data
  setState($("ready"), status.ready ? "good" : "bad", status.ready ? "takes postbacks" : `takes no postbacks: ${status.not_ready}`)
  $("run").textContent = `up for ${duration(data.seconds)}${status.spool.id ? `, spool ${status.spool.id}` : ""}`
  showPostbacks(status.postbacks)
  showRefusals(data.refused)
  showBuses(status.buses)
  showSpool(status.spool)
  showNews(status)
  if (!held) showEvents()
  showWay()
}

// make makes an element. Texts among the children are text.
function make(name, properties, ...children) {
  const e = Object.assign(document.createElement(name), properties)
  e.append(...children)
  return e
}

function setState(e, kind, words) {
  e.className = `state ${kind}`
  setText(e, words)
}

// setText leaves what is as it should be alone: it may be selected, or read out.
function setText(e, text) {
  if (e.textContent !== text) e.textContent = text
}

function setHead(table, ...names) {
  const head = table.tHead
  if (head.rows.length === 0) head.append(make("tr", {}, ...names.map(n => make("th", { scope: "col", className: n.className ?? "" }, n.name ?? n))))
}

// setRows replaces the rows of a table of figures; the first cell of each is its head.
function setRows(table, rows, nothing) {
  const columns = table.tHead.rows[0].cells.length
  table.tBodies[0].replaceChildren(...rows.map(([name, ...cells]) =>
    make("tr", {}, make("th", { scope: "row" }, name), ...cells.map(c => make("td", {}, ...[c].flat())))))
  if (rows.length === 0) table.tBodies[0].append(make("tr", {}, make("td", { colSpan: columns, className: "note" }, nothing)))
}

function showPostbacks(postbacks) {
  const brokers = Object.keys(postbacks).sort()
  const total = (s, fate) => brokers.reduce((n, b) => n + (s.postbacks[b]?.[fate] ?? 0), 0)
  tiles($("answers"), [
    ["postbacks per second", perSecond(rate(s => total(s, "received")))],
    ["time to the answer, half of them", milliseconds(quantile(0.5))],
    ["time to the answer, 99 of 100", milliseconds(quantile(0.99))],
  ])
  setHead($("brokers"), "Broker", ...fates)
  setRows($("brokers"), brokers.map(b => [b, ...fates.map(f => [
    perSecond(rate(s => s.postbacks[b]?.[f] ?? 0)), make("small", {}, whole.format(postbacks[b][f])),
  ])]), "no broker")

  const steps = chartSteps((before, now) => fates.map(f => (total(now, f) - total(before, f)) / (now.seconds - before.seconds)))
  const most = drawChart($("postbacks-chart"), steps, fates)
  $("postbacks-chart").setAttribute("aria-label", `Postbacks per second in the last two minutes, ${perSecond(most)} at most`)
  if (!$("postbacks-legend").hasChildNodes()) {
    $("postbacks-legend").append(...fates.map(f => make("span", { className: f }, f)), make("span", { id: "most" }))
  }
  setText($("most"), `last two minutes, ${perSecond(most)}/s at most`)
}

function tiles(dl, pairs) {
  if (!dl.hasChildNodes()) dl.append(...pairs.map(([name]) => make("div", {}, make("dt", {}, name), make("dd"))))
  pairs.forEach(([, value], i) => setText(dl.children[i].lastChild, value))
}

function showRefusals(refused) {
  setHead($("refusals"), "Broker and reason", "per second", "since the start")
  const rows = Object.entries(refused).sort().flatMap(([broker, reasons]) => Object.entries(reasons).sort().map(([reason, n]) => [
    `${broker}: ${reason}`, perSecond(rate(s => s.refused[broker]?.[reason] ?? 0)), whole.format(n),
  ]))
  setRows($("refusals"), rows, "none since the start")
}

// chartSteps are the values between each two samples.
function chartSteps(values) {
  return samples.slice(1).map((now, i) => values(samples[i], now).map(v => Math.max(0, v)))
}

// drawChart draws a bar of stacked parts for each step, as wide as the time between its samples and the last at the right, and
// returns the highest.
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
      const place = { x, y, width, height, class: kinds[k] }
      for (const [name, v] of Object.entries(place)) bar.setAttribute(name, v)
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
  setState(state, kind, busWords(bus))
  tiles(dl, [
    ["waiting", whole.format(bus.waiting)],
    ["oldest waiting", bus.waiting > 0 ? duration(bus.oldest_waiting_seconds) : "–"],
    ["stored per second", perSecond(rate(s => s.buses[name]?.stored ?? 0))],
    ["stored", whole.format(bus.stored)],
    ["dead letters", whole.format(bus.deadlettered)],
    ["quarantined", whole.format(bus.quarantined)],
    ["skipped", whole.format(bus.skipped)],
  ])
  const most = drawChart(figure.firstChild, chartSteps((_, now) => [now.buses[name]?.waiting ?? 0]), ["waiting"])
  figure.firstChild.setAttribute("aria-label", `Events waiting for ${name} in the last two minutes, ${whole.format(most)} at most`)
  setText(figure.lastChild, `waiting in the last two minutes, ${whole.format(most)} at most`)
  setText(note, bus.last_error ? `last error since the start: ${bus.last_error}` : "")
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
  setText($("spool"), `${bytes(spool.waiting_bytes)} of ${bytes(spool.limit_bytes)} wait for a bus (${percent}); ` +
    `${bytes(spool.bytes)} are on disk, what is published included. The disk has ${bytes(spool.free_bytes)} left, of which ` +
    `${bytes(spool.reserve_bytes)} are a reserve. ${counted(spool.last, "event", "events")} since the spool was made.`)
}

// showNews has read out what changed: a state, not its figures.
function showNews(status) {
  const states = [status.ready ? "takes postbacks" : "takes no postbacks"]
  for (const [name, bus] of Object.entries(status.buses)) states.push(`${name} is ${bus.up ? "up" : "down"}`)
  setText($("news"), states.join(", "))
}

// ---- events ---------------------------------------------------------------------------------------------------------

const kinds = {
  filled: "good", partially_filled: "good", rejected: "bad", cancelled: "off", expired: "off", unknown: "slow",
}

// columns of the list. Those in wide are left out where there is little room; the way of the order has all.
const columns = [
  { name: "Number", className: "wide number", of: e => whole.format(e.sequence) },
  { name: "Time", of: e => time(e) },
  { name: "Broker", className: "wide", of: e => e.broker },
  { name: "User", className: "middle", of: e => shorten(e.user_id, 24) },
  { name: "Order", className: "order", of: e => openWay(e) },
  { name: "Status", of: e => badge(e) },
  { name: "What", className: "middle whole", of: e => shorten(what(e)) },
  { name: "Filled", className: "number", of: e => filled(e) },
  { name: "Price", className: "middle number", of: e => shorten(price(e), 16) },
  { name: "Reason", className: "wide", of: e => shorten(e.reason, 160) },
]
const rejectColumns = columns.filter(c => c.name !== "Filled").map(c => c.name === "Reason" ? { name: "Reason", of: c.of } : c)

function time(e) {
  const date = new Date(e.received_at)
  return make("time", { dateTime: e.received_at, title: e.received_at }, make("small", {}, day(date)), " ", clock(date))
}

function openWay(e) {
  const button = make("button", { type: "button", className: "way" }, e.order_id ? shorten(e.order_id, 24) : "not understood")
  button.addEventListener("click", () => {
    way = e
    shownStates = []
    showWay()
    $("way").showModal()
  })
  return button
}

function badge(e) {
  return make("span", { className: `state ${kinds[e.status] ?? "wait"}`, title: e.broker_status ?? "" }, e.status)
}

const what = e => [e.side, e.symbol ?? e.instrument_id, e.exchange && `(${e.exchange})`].filter(Boolean).join(" ")
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
  showList($("events"), columns, "The last events", matching, events.length)
  showList($("rejects"), rejectColumns, "The last rejects", rejects, events.filter(e => e.status === "rejected").length)
}

let rowsOf = new WeakMap() // table -> event -> row
let rowsDay = "" // when they were made: the next day they say so

// showList shows the newest of the events. Rows that stay are left alone, so that what is focused or selected stays so.
function showList(table, columns, title, list, all) {
  setHead(table, ...columns)
  if (!rowsOf.has(table)) rowsOf.set(table, new WeakMap())
  const rows = rowsOf.get(table)
  const newest = list.slice(0, shownRows)
  const wanted = newest.map(e => {
    if (!rows.has(e)) rows.set(e, make("tr", {}, ...columns.map(c => make("td", { className: c.className ?? "" }, c.of(e)))))
    return rows.get(e)
  })
  const stay = new Set(wanted)
  const body = table.tBodies[0]
  for (const row of [...body.rows]) {
    if (!stay.has(row)) row.remove()
  }
  let at = body.firstElementChild
  for (const row of wanted) {
    if (row === at) at = at.nextElementSibling
    else body.insertBefore(row, at)
  }
  const some = newest.length < list.length ? `the newest ${newest.length} of ${list.length}` : `${list.length}`
  setText(table.caption, list.length < all ? `${title}: ${some} that match, of ${all}` : `${title}: ${some}`)
}

for (const id of ["user", "order", "status"]) $(id).addEventListener("input", showEvents)
$("filter").addEventListener("submit", event => event.preventDefault())
$("filter").addEventListener("reset", () => setTimeout(showEvents))
$("hold").addEventListener("click", () => {
  held = !held
  $("hold").setAttribute("aria-pressed", held)
  $("hold").textContent = held ? "Go on" : "Hold still"
  if (!held) showEvents()
})

// showWay shows the states of one order, the oldest first.
function showWay() {
  if (!way) return
  const states = events.filter(e => e === way || way.order_id !== undefined &&
    e.order_id === way.order_id && e.user_id === way.user_id && e.broker === way.broker).reverse()
  if (states.length === 0 || states.every((e, i) => e === shownStates[i])) return
  shownStates = states
  setText($("way-title"), way.order_id ? `Order ${way.order_id}` : "A postback that was not understood")
  setText($("way-note"), [way.broker, way.user_id && `user ${way.user_id}`, what(way)].filter(Boolean).join(", ") +
    `. ${counted(states.length, "state", "states")} among the last events, the oldest first.`)
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
    make("p", { className: "note" }, `number ${whole.format(e.sequence)}, event ${e.id}, proved by ${e.verified_by}`))
}

function after(ms) {
  return ms < 60000 ? milliseconds(Math.max(0, ms) / 1000) : duration(ms / 1000)
}

$("way").addEventListener("close", () => { way = null })
document.addEventListener("visibilitychange", poll)
poll()
