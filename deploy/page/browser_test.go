package page

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

var (
	shots   = flag.String("shots", "", "a directory for screenshots")
	picture = flag.Bool("picture", false, "write page.png, the picture of the documents, anew")
)

// patience limits each wait for the browser.
const patience = time.Minute

// findChromium returns the path of the browser. Without one it skips the test, or fails it if PAGE_TEST_REQUIRED=1.
func findChromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("PAGE_TEST_REQUIRED") == "1" {
		t.Fatal("Chromium is not installed; apt-get install chromium")
	}
	t.Skip("Chromium is not installed")
	return ""
}

// tab is a page in its own browser.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	requests []string // URLs requested by the page
	wrong    []string // exceptions, and violations of the content security policy
}

// open opens the address in a browser, which ends with the test.
func open(t *testing.T, address string) *tab {
	t.Helper()
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(findChromium(t)), chromedp.UserDataDir(t.TempDir()), chromedp.Headless, chromedp.NoSandbox,
		chromedp.NoFirstRun, chromedp.DisableGPU, chromedp.WindowSize(1280, 1200),
	}
	for _, name := range []string{"disable-quic", "disable-background-networking", "disable-component-update",
		"disable-sync"} {
		options = append(options, chromedp.Flag(name, true))
	}
	// t.Context ends before the screenshot of a failure
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	call(b, network.Enable, network.EnableParams{})
	call(b, cdplog.Enable, cdp.Empty{})
	call(b, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	b.do(chromedp.Navigate(address))
	t.Cleanup(func() {
		if t.Failed() {
			b.shoot("failed")
		}
	})
	return b
}

// hear records requests and errors of the browser. An unreachable server, or one that requires a token, is not an
// error.
func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *runtime.EventExceptionThrown:
		b.wrong = append(b.wrong, fmt.Sprint(e.ExceptionDetails.Text, " ", e.ExceptionDetails.Exception))
	case *cdplog.EventEntryAdded:
		if e.Entry.Source != cdplog.EntrySourceNetwork {
			b.wrong = append(b.wrong, fmt.Sprintf("%s: %s", e.Entry.Source, e.Entry.Text))
		}
	}
}

// calm checks that the browser reported no errors, and sent requests only to postbridge.
func (b *tab) calm(address string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, wrong := range b.wrong {
		b.t.Errorf("browser error: %s", wrong)
	}
	for _, u := range b.requests {
		if !strings.HasPrefix(u, address) {
			b.t.Errorf("the page requested %s", u)
		}
	}
	if len(b.requests) < 3 {
		b.t.Errorf("the page requested only %v", b.requests)
	}
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// call sends the browser a command.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if _, err := chromedp.Call(ctx, command, params); err != nil {
		b.t.Fatal(err)
	}
}

func (b *tab) click(css string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(css)))
}

// enter types into a field.
func (b *tab) enter(css, keys string) {
	b.t.Helper()
	b.do(chromedp.SendKeys(chromedp.CSS(css), keys))
}

// run runs JavaScript.
func (b *tab) run(js string) {
	b.t.Helper()
	b.do(chromedp.Evaluate[chromedp.Void](js))
}

// eval returns the value of a JavaScript expression, in which $(css) is the text of an element.
func eval[T any](b *tab, js string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](
		`(() => { const $ = css => document.querySelector(css)?.innerText ?? ""; return (`+js+`) })()`))
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

// await waits until a JavaScript expression is true.
func (b *tab) await(js string) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if eval[bool](b, js) {
			return
		}
	}
	b.t.Fatalf("timed out waiting for %s; the page shows\n%s", js,
		eval[string](b, `document.body.innerText.slice(0, 3000)`))
}

// shoot saves a screenshot of the window in the directory -shots.
func (b *tab) shoot(name string) { b.save(name, chromedp.CaptureScreenshot()) }

// shootWhole saves a screenshot of the whole page in the directory -shots.
func (b *tab) shootWhole(name string) { b.save(name, chromedp.FullScreenshot(100)) }

func (b *tab) save(name string, screenshot chromedp.Action[[]byte]) {
	if *shots == "" {
		return
	}
	picture, err := chromedp.Run(b.ctx, screenshot)
	if err != nil {
		b.t.Log(err)
		return
	}
	path := filepath.Join(*shots, strings.ReplaceAll(b.t.Name(), "/", "-")+"-"+name+".png")
	if err := os.WriteFile(path, picture, 0o644); err != nil {
		b.t.Error(err)
	}
}

// shootAll saves screenshots on a desktop and on a phone, in light and in dark mode, in the directory -shots.
func (b *tab) shootAll(name string) {
	if *shots == "" {
		return
	}
	for _, look := range []struct {
		name          string
		width, height int64
		dark          bool
	}{
		{"phone-light", 390, 844, false}, {"phone-dark", 390, 844, true},
		{"desktop-dark", 1366, 900, true}, {"desktop-light", 1366, 900, false},
	} {
		b.size(look.width, look.height)
		b.dark(look.dark)
		b.shoot(name + "-" + look.name)
	}
}

// hover moves the mouse pointer to an element.
func (b *tab) hover(css string) {
	b.t.Helper()
	type point struct{ X, Y float64 }
	at := eval[point](b, `(r => ({x: r.x + r.width / 2, y: r.y + r.height / 2}))(
		(e => (e.scrollIntoView({block: "center"}), e.getBoundingClientRect()))(document.querySelector("`+css+`")))`)
	call(b, input.DispatchMouseEvent, input.DispatchMouseEventParams{
		Type: input.DispatchMouseEventTypeMouseMoved, X: at.X, Y: at.Y,
	})
}

// dark sets the preferred color scheme of the browser.
func (b *tab) dark(yes bool) {
	b.t.Helper()
	scheme := map[bool]string{true: "dark", false: "light"}[yes]
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
}

// size sets the size of the window; below 500 pixels it emulates a phone.
func (b *tab) size(width, height int64) {
	b.t.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 500,
	})
}
