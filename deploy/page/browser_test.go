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
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

var shots = flag.String("shots", "", "a directory to put screenshots into, to look at")

// patience is how long something may take to show.
const patience = time.Minute

// findChromium is the browser; a test without one is left out, or fails if PAGE_TEST_REQUIRED says so.
func findChromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("PAGE_TEST_REQUIRED") == "1" {
		t.Fatal("there is no Chromium; apt-get install chromium")
	}
	t.Skip("there is no Chromium")
	return ""
}

// tab is a page in a browser of its own.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	requests []string // URLs that were asked for
	wrong    []string // what the browser had to say: exceptions, what the policy kept from loading
}

// open opens the address in a browser, which ends with the test.
func open(t *testing.T, address string) *tab {
	t.Helper()
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(findChromium(t)), chromedp.UserDataDir(t.TempDir()), chromedp.Headless, chromedp.NoSandbox,
		chromedp.NoFirstRun, chromedp.DisableGPU, chromedp.WindowSize(1280, 1200),
	}
	for _, name := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync"} {
		options = append(options, chromedp.Flag(name, true))
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...) // not the test's, which ends before the last picture
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	call(b, network.Enable, network.EnableParams{})
	call(b, cdplog.Enable, cdp.Empty{})
	b.do(chromedp.Navigate(address))
	t.Cleanup(func() {
		if t.Failed() {
			b.shoot("failed")
		}
	})
	return b
}

// hear takes down what the browser asks for and complains of. A server that is away, or that wants a token, is no complaint.
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

// calm is that nothing went wrong in the browser, and that it asked nobody but postbridge for anything.
func (b *tab) calm(address string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, wrong := range b.wrong {
		b.t.Errorf("the browser says %s", wrong)
	}
	for _, u := range b.requests {
		if !strings.HasPrefix(u, address) {
			b.t.Errorf("the page asked for %s", u)
		}
	}
	if len(b.requests) < 3 {
		b.t.Errorf("the page asked for %v only", b.requests)
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

// call gives the browser a command.
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

// eval is what an expression of JavaScript comes to. In it, $(css) is the text of an element.
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

// await waits until a piece of JavaScript is true.
func (b *tab) await(js string) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if eval[bool](b, js) {
			return
		}
	}
	b.t.Fatalf("waited in vain for %s; the page says\n%s", js, eval[string](b, `document.body.innerText.slice(0, 3000)`))
}

// shoot takes a picture of what the window shows, for people to look at.
func (b *tab) shoot(name string) {
	if *shots == "" {
		return
	}
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Log(err)
		return
	}
	path := filepath.Join(*shots, strings.ReplaceAll(b.t.Name(), "/", "-")+"-"+name+".png")
	if err := os.WriteFile(path, picture, 0o644); err != nil {
		b.t.Error(err)
	}
}

// dark has the browser prefer dark pages, or light ones.
func (b *tab) dark(yes bool) {
	b.t.Helper()
	scheme := map[bool]string{true: "dark", false: "light"}[yes]
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
}

// size has the page be so large, on a phone if it is narrow.
func (b *tab) size(width, height int64) {
	b.t.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 500,
	})
}
