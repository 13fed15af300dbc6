package page

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// TestFills is that the page shows what flows while it flows: without a reload, and with nothing from anywhere else.
func TestFills(t *testing.T) {
	s := serve(t, nil)
	b := open(t, s.admin)
	b.await(`$("#ready") === "ingest: ready" && $("article .state") === "up"`)
	if rows := eval[int](b, `document.querySelectorAll("#events tbody tr").length`); rows != 0 {
		t.Errorf("there are %d events before any was sent", rows)
	}
	b.run(`window.loaded = "once"`)
	s.postText("/dhan/"+dhanToken, `{"legName": ,}`)
	b.await(`$("#events tbody").includes("not understood")`)

	s.send("--rate", "40", "--for", "10m", "--connections", "2", "--repeats", "0.2", "--seed", "7")
	s.send("--broker", "dhan", "--rate", "10", "--for", "10m", "--seed", "7")
	for range 3 {
		s.postText("/kite", `{"order_id":"1"}`)
	}
	s.postText("/dhan/no-such-token", `{}`)

	const number = `(css => Number($(css).replaceAll(",", "")))`
	b.await(number + `("#answers dd") > 20`) // postbacks per second
	b.await(`/^[0-9.]+ (ms|s)$/.test($("#answers div:nth-child(2) dd"))`)
	b.await(`/^[0-9.]+ (ms|s)$/.test($("#answers div:nth-child(3) dd"))`)
	b.await(`[...document.querySelectorAll("#brokers tbody th")].map(e => e.innerText).join() === "dhan,kite"`)
	b.await(`/^[1-9]/.test($("#brokers tbody tr:nth-child(2) td:nth-child(2)"))`) // accepted
	b.await(`/^[0-9.]*[1-9]/.test($("#brokers tbody tr:nth-child(2) td:nth-child(3)"))`)
	b.await(`$("#refusals tbody").replaceAll(/\s+/g, " ").includes("kite: checksum")`)
	b.await(`$("#refusals tbody").replaceAll(/\s+/g, " ").includes("dhan: token")`)
	b.await(number + `("article dl div:nth-child(3) dd") > 10`) // stored per second
	b.await(`$("article dl div:nth-child(5) dd") === "1"`)      // dead letters
	b.await(`document.querySelectorAll("#events tbody tr").length === 50`)
	b.await(`document.querySelectorAll("#rejects tbody tr").length > 0`)
	b.await(`document.querySelectorAll("#postbacks-charts [data-span=fine] rect.accepted").length > 5`)
	b.await(`/ of 8 GiB /.test($("#spool dd")) && $("#spool").includes("not filling")`)
	b.await(`/^v0.1.0, up for .*, spool [0-9a-f]{8}$/.test($("#run"))`)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	b.await(`$("#host") === "` + host + `" && document.title === "postbridge – ` + host + `"`)
	b.await(`$("#chips p") === "nats: up"`)
	b.await(`[...document.querySelectorAll("article figure")].every(f => f.hidden)`) // nothing was unpublished

	// The newest is first. While a row is focused or hovered, no row moves.
	const first = `$("#events tbody tr td:nth-child(1)")`
	const focus = `document.querySelector("#events tbody button").focus()`
	for name, hold := range map[string]struct{ begin, end func() }{
		"focused": {func() { b.run(focus) }, func() { b.run(`document.activeElement.blur()`) }},
		"hovered": {func() { b.hover("#events tbody button") }, func() { b.hover("h1") }},
	} {
		hold.begin()
		before := eval[string](b, first)
		b.await(`/^[0-9]+ new events?; the lists hold still while in use$/.test($("#held"))`)
		if now := eval[string](b, first); now != before {
			t.Errorf("while a row is %s, the first row changed from %s to %s", name, before, now)
		}
		hold.end()
		b.await(first + ` !== "` + before + `" && $("#held") === ""`)
	}
	if !eval[bool](b, `(n => n.every((v, i) => i === 0 || v < n[i-1]))(
		[...document.querySelectorAll("#events tbody tr td:nth-child(1)")]
			.map(e => Number(e.innerText.replaceAll(",", ""))))`) {
		t.Error("the events are not the newest first")
	}
	b.await(`$("#events caption").includes("newest 50 of 500") && $("#rejects caption").includes("newest 10 of")`)
	b.click("#events + .more")
	b.await(`document.querySelectorAll("#events tbody tr").length === 500 &&
		$("#events caption") === "Latest events: 500"`)
	b.click("#rejects + .more")
	b.await(`document.querySelectorAll("#rejects tbody tr").length > 10 && $("#rejects + .more") === "Show 10"`)
	b.click("#rejects + .more")
	b.await(`document.querySelectorAll("#rejects tbody tr").length === 10`)
	b.hover("h1")

	b.run(`document.querySelector("#events").dispatchEvent(new Event("touchstart", {bubbles: true}))`)
	b.await(`$("#held").endsWith("hold still while in use")`)

	// Held still, nothing moves, and everything else goes on.
	b.click("#pause")
	row, rates := eval[string](b, `$("#events tbody tr")`), eval[string](b, `$("article dl div:nth-child(4) dd")`)
	b.await(`$("article dl div:nth-child(4) dd") !== "` + rates + `" && $("#held").includes("the lists are paused")`)
	if now := eval[string](b, `$("#events tbody tr")`); now != row {
		t.Errorf("%q was added while the list was paused", now)
	}
	b.click("#pause")
	b.await(`$("#events caption") !== "" && document.querySelector("#pause").getAttribute("aria-pressed") === "false"`)

	b.shoot("light")
	if eval[string](b, `window.loaded`) != "once" {
		t.Error("the page was loaded again")
	}
	for _, secret := range []string{appSecret, dhanToken, "legName"} {
		if eval[bool](b, `document.documentElement.outerHTML.includes("`+secret+`")`) {
			t.Errorf("the page shows %q", secret)
		}
	}
	b.calm(s.admin)
}

// TestBus checks that the page shows outages and recoveries of the bus with its backlog, and those of postbridge.
func TestBus(t *testing.T) {
	bus := serve(t, map[string]string{"ADMIN_PAGE": "false"}) // its embedded server is the bus
	if resp, err := http.Get(bus.admin); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("the page is switched off, and answers %v, %v", resp, err)
	}
	s := serve(t, map[string]string{"NATS_URL": bus.bus, "NATS_LISTEN": ""})
	b := open(t, s.admin)
	s.send("--rate", "50", "--for", "10m")
	b.await(`$("article .state") === "up" && Number($("article dl div:nth-child(3) dd")) > 10`)
	b.await(`$("#announcement").includes("nats is up")`)

	order := `[...document.querySelectorAll("main h2")].map(h => [h.getBoundingClientRect().top, h.innerText])
		.sort((a, b) => a[0] - b[0]).map(h => h[1]).join()`
	if has := eval[string](b, order); has != "Postbacks,Buses,Spool,Events" {
		t.Errorf("the sections are %s", has)
	}

	bus.kill()
	b.await(`/^down since [0-9:]+ \([0-9]+ s\): connection: .*; [0-9,]+ unpublished events, the oldest for [0-9]+ s$/
		.test($("article .state"))`)
	b.await(`Number($("article dl div:nth-child(1) dd")) > 100 && $("article dl div:nth-child(3) dd") === "0"`)
	b.await(`$("#announcement").includes("nats is down") &&
		document.querySelectorAll("article .chart rect.waiting").length > 1 &&
		document.querySelectorAll("article .chart rect.down").length > 1`)
	b.await(`/^nats: down since [0-9:]+ \([0-9]+ s\), [0-9,]+ unpublished, full in [0-9]+ [dh]/
			.test($("#chips p")) &&
		/^[0-9]+ [dh] /.test($("#spool div:nth-child(2) dd"))`)
	b.await(`document.title.startsWith("● nats down – ") && document.querySelector("#icon").href.includes("d0342c")`)
	if has := eval[string](b, order); has != "Buses,Postbacks,Spool,Events" {
		t.Errorf("while a bus is down the sections are %s", has)
	}
	if ready := eval[string](b, `$("#ready")`); ready != "ingest: ready" {
		t.Errorf("while the bus is down the page shows %q", ready)
	}
	b.shootAll("down")

	// The outage began before this page was opened.
	late := open(t, s.admin)
	late.await(`document.querySelectorAll("[data-span=fine] rect.accepted").length > 10 &&
		document.querySelectorAll("article [data-span=fine] rect.down").length > 5`)
	late.calm(s.admin)

	bus.start()
	b.await(`$("article .state") === "up" && Number($("article dl div:nth-child(1) dd")) < 100`)
	b.await(`Number($("article dl div:nth-child(3) dd")) > 10 && $("#announcement").includes("nats is up")`)
	b.await(`/^last error [0-9:]+, over: connection: /.test($("article > .note")) && $("#chips p") === "nats: up"`)
	b.await(`document.title.startsWith("postbridge – ") && document.querySelector("#icon").href.includes("1f5fbf")`)
	if has := eval[string](b, order); has != "Postbacks,Buses,Spool,Events" {
		t.Errorf("after the outage the sections are %s", has)
	}
	b.shootAll("back")

	s.kill()
	b.await(`$("#lost").includes("postbridge has not answered since") && $("#ready") === "no answer"`)
	b.await(`document.title.startsWith("● no answer – ")`)
	b.shootAll("lost")
	s.start()
	b.await(`document.querySelector("#lost").hidden && $("article .state") === "up"`)
	b.calm(s.admin)
}

// TestPicture makes the picture of the documents: postbacks of two brokers, and a bus that was down for half a minute.
func TestPicture(t *testing.T) {
	if !*picture {
		t.Skip("go test -run TestPicture -picture writes page.png anew")
	}
	bus := serve(t, map[string]string{"ADMIN_PAGE": "false"}) // its embedded server is the bus
	s := serve(t, map[string]string{"NATS_URL": bus.bus, "NATS_LISTEN": ""})
	b := open(t, s.admin)
	b.size(1100, 832)
	s.send("--rate", "18", "--for", "10m", "--repeats", "0.15", "--seed", "7")
	s.send("--broker", "dhan", "--rate", "6", "--for", "10m", "--seed", "7")
	wait := func(seconds int) {
		for range seconds {
			s.postText("/kite", `{"order_id":"1"}`) // refused
			time.Sleep(time.Second)
		}
	}
	wait(40)
	bus.kill()
	wait(30)
	bus.start()
	wait(20)
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile("page.png", picture, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFilter checks the filters of the lists, and the order history.
func TestFilter(t *testing.T) {
	s := serve(t, nil)
	for i, user := range []string{"AB1234", "CD5678"} {
		order := []string{"220303000308932", "220303000999999"}[i]
		s.post(map[string]any{"user_id": user, "order_id": order, "status": "OPEN", "price": 470,
			"transaction_type": "BUY", "tradingsymbol": "SBIN", "order_type": "LIMIT"})
		s.post(map[string]any{"user_id": user, "order_id": order, "status": "OPEN", "filled_quantity": 4,
			"average_price": 469.5})
	}
	s.post(map[string]any{"user_id": "AB1234", "order_id": "220303000308932", "status": "COMPLETE",
		"filled_quantity": 10, "average_price": 469.55})
	s.post(map[string]any{"user_id": "CD5678", "order_id": "220303000777777", "status": "REJECTED",
		"status_message": "Margin exceeded"})
	b := open(t, s.admin)
	const rows = `[...document.querySelectorAll("#events tbody tr")].map(r => r.cells[0].innerText).join()`
	b.await(rows + ` === "6,5,4,3,2,1"`)

	b.enter("#user", "cd56")
	b.await(rows + ` === "6,4,3" && $("#events caption") === "Latest events: 3 matching, of 6"`)
	b.enter("#order", "999999")
	b.await(rows + ` === "4,3" && document.querySelectorAll("#rejects tbody tr").length === 0`)
	b.click("#clear")
	b.await(rows + ` === "6,5,4,3,2,1"`)
	b.enter("#status", "rej") // as one does at the keyboard
	b.await(rows + ` === "6" && $("#rejects tbody").includes("Margin exceeded")`)
	b.click("#clear")
	b.await(rows + ` === "6,5,4,3,2,1"`)

	b.click("#events tbody tr:nth-child(2) button") // of event 5
	b.await(`document.querySelector("#history").open && $("#history-title") === "Order 220303000308932"`)
	const states = `[...document.querySelectorAll("#states li .state")].map(e => e.innerText).join()`
	b.await(states + ` === "open,partially_filled,filled"`)
	b.await(`$("#states li:nth-child(2)").includes("4/10 filled") &&
		$("#states li:nth-child(3)").includes("average 469.55")`)
	b.await(`$("#events tbody tr:nth-child(2)").includes("avg 469.5") &&
		[...document.querySelectorAll("#events tbody tr")].at(-1).innerText.includes("\t470\t")`)
	b.await(`$("#history-note").includes("kite, user AB1234")`)
	b.shoot("history")

	// It goes on while it is open: and what another user's order of that number does is not part of it.
	s.post(map[string]any{"user_id": "CD5678", "order_id": "220303000308932", "status": "CANCELLED"})
	s.post(map[string]any{"user_id": "AB1234", "order_id": "220303000308932", "status": "OPEN", "filled_quantity": 9})
	b.await(states + ` === "open,partially_filled,filled,partially_filled"`)
	b.do(chromedp.KeyEvent("\x1b")) // Escape
	b.await(`!document.querySelector("#history").open`)
	b.calm(s.admin)
}

// TestHistoryGoesOn checks that an open order history is updated after its first states have left the latest events.
func TestHistoryGoesOn(t *testing.T) {
	s := serve(t, nil)
	fill := func(n int) {
		s.post(map[string]any{"order_id": "7", "status": "OPEN", "quantity": 10, "filled_quantity": n})
	}
	b := open(t, s.admin)
	fill(1)
	s.send("--count", "498", "--connections", "16")
	b.await(`$("#events caption").endsWith("of 499")`)
	fill(2)
	b.enter("#order", "7")
	b.await(`$("#events tbody tr:nth-child(1)").includes("2/10")`)
	b.click("#events tbody tr:nth-child(1) button")
	b.await(`document.querySelectorAll("#states li").length === 2`)
	fill(3)
	b.await(`$("#states li:nth-child(1)").includes("2/10") && $("#states li:nth-child(2)").includes("3/10")`)
	b.calm(s.admin)
}

// TestTime checks the time spans of rates and charts, also after the page was hidden for a while, and that an event
// of another day has a date.
func TestTime(t *testing.T) {
	s := serve(t, nil)
	address, err := url.Parse(s.admin)
	if err != nil {
		t.Fatal(err)
	}
	var hidden atomic.Int64 // seconds
	behind := httputil.NewSingleHostReverseProxy(address)
	behind.ModifyResponse = func(resp *http.Response) error {
		if resp.Request.URL.Path != "/page/data" {
			return nil
		}
		var data map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&data); err != nil {
			return err
		}
		data["seconds"] = data["seconds"].(float64) + float64(hidden.Load())
		for _, e := range data["events"].([]any) {
			if e := e.(map[string]any); e["order_id"] == "1" {
				e["received_at"] = "2026-01-02T12:00:00Z"
			}
		}
		text, err := json.Marshal(data)
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
		resp.Header.Del("Content-Length")
		return err
	}
	shifted := httptest.NewServer(behind)
	defer shifted.Close()
	s.post(map[string]any{"order_id": "1", "status": "OPEN"})
	s.post(map[string]any{"order_id": "2", "status": "OPEN"})
	b := open(t, shifted.URL)
	b.await(`/^2 Jan\s+[0-9:.]+$/.test($("#events tbody tr:nth-child(2) time")) &&
		/^[0-9:.]+$/.test($("#events tbody tr:nth-child(1) time"))`)
	b.click("#events tbody tr:nth-child(2) button")
	b.await(`/^2 Jan\s+[0-9:.]+$/.test($("#states time"))`)
	b.click("#close")

	s.send("--rate", "50", "--for", "10m")
	const bars = `[...document.querySelectorAll("[data-span=fine] rect.accepted")]`
	const rate = `Number($("#answers dd"))`
	b.await(bars + `.length > 6 && ` + rate + ` > 30`)
	b.await(bars + `.every(r => r.getAttribute("width") < 5)`)
	hidden.Store(60)
	b.await(bars + `.some(r => r.getAttribute("x") < 60)`) // earlier bars are a minute older
	hidden.Store(600)
	b.await(bars + `.every(r => r.getAttribute("x") < 0)`) // outside of the chart
	b.await(`[...document.querySelectorAll("[data-span=coarse] rect.accepted")].some(r => r.getAttribute("x") > 2900)`)
	b.await(rate + ` > 30`)
	b.calm(shifted.URL)
}

// TestUntrusted checks that external input is shown as text, even if it is HTML.
func TestUntrusted(t *testing.T) {
	s := serve(t, nil)
	const script, image = `<script>b=1</script>`, `<img src=x onerror=b=2>`
	s.post(map[string]any{
		"user_id": script, "order_id": image, "status": script, "status_message": image + script,
		"tradingsymbol":    image,
		"transaction_type": script, "order_type": image,
	})
	s.post(map[string]any{"user_id": script, "order_id": image, "status": "REJECTED", "status_message": image +
		script + "\u202e\x00\x1b[2J"})
	b := open(t, s.admin)
	b.await(`document.querySelectorAll("#events tbody tr").length === 2 &&
		document.querySelectorAll("#rejects tbody tr").length === 1`)
	b.enter("#user", "<SCRIPT>")
	b.await(`document.querySelectorAll("#events tbody tr").length === 2`)
	b.click("#events tbody tr:nth-child(1) button")
	b.await(`document.querySelectorAll("#states li").length === 2`)
	for css, want := range map[string]string{
		"#history-title":                          "Order " + image,
		"#history-note":                           script,
		"#states li:nth-child(1)":                 image + script,
		"#states li:nth-child(1) p":               script, // the broker's own word
		"#events tbody tr:nth-child(2) td button": image,
		"#rejects tbody tr td:last-child":         image + script + "...[2J", // as tail shows it
	} {
		if text := eval[string](b, `document.querySelector(`+"`"+css+"`"+`).textContent`); !strings.Contains(text,
			want) {
			t.Errorf("%s says %q, without %q", css, text, want)
		}
	}
	if n := eval[int](b, `document.querySelectorAll("img, body script").length`); n != 0 {
		t.Errorf("text has become %d elements", n)
	}
	if eval[bool](b, `window.b !== undefined`) {
		t.Error("text was run")
	}
	b.shoot("text")
	b.calm(s.admin)

	// The content security policy makes the browser reject HTML from text.
	result := eval[string](b, `(() => {
		try { document.body.innerHTML = "<b>x</b>" } catch (e) { return e.name }
	})() ?? "done"`)
	if result != "TypeError" {
		t.Errorf("innerHTML: %s", result)
	}
}

// TestToken checks that the page asks for a required token, and stores it in its tab only.
func TestToken(t *testing.T) {
	s := serve(t, nil)
	address, err := url.Parse(s.admin)
	if err != nil {
		t.Fatal(err)
	}
	behind := httputil.NewSingleHostReverseProxy(address)
	guarded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/page/data" && req.Header.Get("Authorization") != "Bearer right" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		behind.ServeHTTP(w, req)
	}))
	defer guarded.Close()
	b := open(t, guarded.URL)
	b.await(`$("#login").includes("Token required") && document.querySelector("#main").hidden`)
	b.await(`document.title === "● token required"`)
	b.enter("#token", "wrong\r")
	b.await(`$("#login").includes("was rejected")`)
	b.shoot("login")
	b.enter("#token", "ri€ght\r") // not valid in a header
	b.await(`$("#login").includes("was rejected") && document.querySelector("#token").value === ""`)
	b.enter("#token", "right\r")
	b.await(`$("article .state") === "up" && document.querySelector("#login").hidden`)
	b.do(chromedp.Reload())
	b.await(`$("article .state") === "up" && document.querySelector("#login").hidden`)
	kept := eval[string](b, `sessionStorage.token + localStorage.length + document.cookie + location.search +
		location.hash`)
	if kept != "right0" {
		t.Errorf("the browser keeps %q", kept)
	}
	b.calm(guarded.URL)
}

// TestLooks checks contrast and width of the page, in light and dark mode and on a phone, and its accessibility.
func TestLooks(t *testing.T) {
	s := serve(t, nil)
	s.send("--count", "300", "--connections", "4", "--repeats", "0.1", "--seed", "1")
	s.post(map[string]any{"order_id": strings.Repeat("9", 120), "user_id": strings.Repeat("U", 90),
		"status": "REJECTED", "status_message": strings.Repeat("margin", 60)})
	s.postText("/kite", `{"order_id":"1"}`)
	b := open(t, s.admin)
	b.await(`document.querySelectorAll("#events tbody tr").length === 50`)
	backgrounds := map[string]bool{}
	for _, look := range []struct {
		name          string
		width, height int64
		dark          bool
	}{
		{"desktop-light", 1366, 1300, false},
		{"desktop-dark", 1366, 1300, true},
		{"phone-light", 390, 844, false},
		{"phone-dark", 390, 844, true},
		{"small-phone", 360, 740, false},
		{"tablet", 800, 1300, false},
	} {
		b.size(look.width, look.height)
		b.dark(look.dark)
		b.await(`document.documentElement.clientWidth === ` +
			strconv.FormatInt(look.width, 10))
		if wide := eval[int](b, `document.documentElement.scrollWidth`); wide > int(look.width) {
			t.Errorf("%s: the page is %d wide", look.name, wide)
		}
		if look.width < 500 {
			b.await(`document.querySelectorAll("#events tbody tr").length === 20`)
			screens := eval[float64](b, `document.documentElement.scrollHeight / innerHeight`)
			if look.width == 390 && screens >= 5 {
				t.Errorf("%s: the page has %.1f screens", look.name, screens)
			}
			if tops := eval[int](b, `new Set([...document.querySelectorAll(".filter input, .filter select, #pause")]
				.map(e => Math.round(e.getBoundingClientRect().bottom))).size`); tops != 1 {
				t.Errorf("%s: the filters are in %d rows", look.name, tops)
			}
			if !eval[bool](b, `document.querySelector("#events tbody .narrow .id").checkVisibility()`) {
				t.Errorf("%s: the user is not shown", look.name)
			}
		}
		backgrounds[eval[string](b, `getComputedStyle(document.body).backgroundColor`)] = true
		for _, faint := range eval[[]string](b, faintTexts) {
			t.Errorf("%s: %s", look.name, faint)
		}
		b.shootWhole(look.name)
		b.run(`document.querySelector("#rejects tbody button").click()`)
		b.await(`document.querySelector("#history").open`)
		wide := eval[int](b, `Math.ceil(document.querySelector("#history").getBoundingClientRect().right)`)
		if wide > int(look.width) {
			t.Errorf("%s: the order history ends at %d", look.name, wide)
		}
		b.shoot(look.name + "-history")
		b.click("#close")
	}
	if len(backgrounds) != 2 {
		t.Errorf("light and dark mode have the backgrounds %v", backgrounds)
	}
	for what, js := range map[string]string{
		"tables have captions": `[...document.querySelectorAll("table")].every(t => t.caption.innerText !== "")`,
		"columns have heads": `[...document.querySelectorAll("thead th")]
			.every(h => h.scope === "col" && h.textContent !== "")`,
		"fields have labels": `[...document.querySelectorAll("input, select, meter")]
			.every(f => f.labels.length === 1)`,
		"charts have names": `[...document.querySelectorAll("svg")]
			.every(s => s.getAttribute("aria-label") !== "")`,
		"there is one title": `document.querySelectorAll("h1").length === 1`,
		"each section has a headline": `[...document.querySelectorAll("section")].every(
			s => document.getElementById(s.getAttribute("aria-labelledby")).tagName === "H2")`,
		"the language is named": `document.documentElement.lang === "en"`,
	} {
		if !eval[bool](b, js) {
			t.Errorf("false: %s", what)
		}
	}
	b.calm(s.admin)
}

// faintTexts returns the elements whose text has less contrast with its background than WCAG AA requires.
const faintTexts = `(() => {
	const rgb = color => color.match(/[0-9.]+/g).map(Number)
	const luminance = color => {
		const [r, g, b] = rgb(color).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
		return 0.2126 * r + 0.7152 * g + 0.0722 * b
	}
	const ground = e => {
		for (; e; e = e.parentElement) {
			const color = getComputedStyle(e).backgroundColor
			if ((rgb(color)[3] ?? 1) === 1) return color
		}
		return "rgb(255, 255, 255)"
	}
	const faint = new Set()
	for (const e of document.querySelectorAll("body *")) {
		if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue
		const [a, b] = [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((x, y) => y - x)
		const contrast = (a + 0.05) / (b + 0.05)
		if (contrast < 4.5) faint.add(e.tagName + "." + e.className + " has a contrast of " + contrast.toFixed(2))
	}
	return [...faint]
})()`
