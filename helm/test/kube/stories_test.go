//go:build linux

package kube

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/postbridge/postbridge/helm/test/controlplane"
)

const top = "../../.." // root of the repository

func TestMain(m *testing.M) {
	if os.Args[0] == asContainer {
		fmt.Fprintln(os.Stderr, becomeContainer())
		os.Exit(127)
	}
	dir := os.Getenv(inSandbox)
	if dir == "" {
		os.Exit(runInSandbox())
	}
	if err := enterSandbox(dir); err != nil {
		fmt.Fprintln(os.Stderr, "kube: the sandbox:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// suite holds what all stories share.
type suite struct {
	*controlplane.ControlPlane
	dir   string // of the sandbox
	tools string // helm, kubectl and postbridge
	nodes []*kubelet
}

// story holds the state of one story.
type story struct {
	t    testing.TB
	nats *natsServers // nil until started
}

type storyKey struct{}

func storyOf(ts *testscript.TestScript) *story { return ts.Value(storyKey{}).(*story) }

// TestStories uses the chart as a platform team does, with one story per file in stories/. Each story has its own
// namespace, which enforces the Pod Security Standard "restricted".
func TestStories(t *testing.T) {
	s := startSuite(t)
	testscript.Run(t, testscript.Params{
		Dir:   "stories",
		Setup: s.setUp,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"nats":       s.cmdNATS,
			"kafka":      s.cmdKafka,
			"balance":    s.cmdBalance,
			"stored":     s.cmdStored,
			"crash":      s.cmdCrash,
			"eventually": s.cmdEventually,
			"alert":      s.cmdAlert,
			"readme":     s.cmdReadme,
		},
	})
}

func startSuite(t *testing.T) *suite {
	root, err := filepath.Abs(top)
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{dir: os.Getenv(inSandbox)}
	s.tools = filepath.Join(s.dir, "bin")
	if err := os.MkdirAll(s.tools, 0o755); err != nil {
		t.Fatal(err)
	}
	binaries := os.Getenv("KUBE_TOOLS") // see the Makefile
	for name, target := range map[string]string{
		"helm": os.Getenv("HELM"), "kubectl": binaries + "/kubectl",
		"postbridge": image(s.dir, "postbridge:"+firstVersion),
	} {
		if _, err := os.Stat(target); err != nil {
			t.Fatalf("%s: %v; run it with make kube-test", name, err)
		}
		if err := os.Symlink(target, filepath.Join(s.tools, name)); err != nil {
			t.Fatal(err)
		}
	}
	if s.ControlPlane, err = controlplane.Start(t.Context(), binaries, t.TempDir(), true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	f := informers.NewSharedInformerFactory(s.Client, 0)
	if err := (&storage{client: s.Client, dir: t.TempDir()}).start(ctx, f); err != nil {
		t.Fatal(err)
	}
	f.Start(ctx.Done())
	pods := new(addresses)
	for _, node := range []string{"a", "b", "c"} {
		k := &kubelet{client: s.Client, node: node, dir: t.TempDir(), addresses: pods,
			image: func(name string) string { return image(s.dir, name) }}
		if err := k.start(ctx, t); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cancel(); k.running.Wait() })
		s.nodes = append(s.nodes, k)
	}
	if err := s.Define(ctx, filepath.Join(binaries, "definitions")); err != nil {
		t.Fatal(err)
	}
	if err := s.startMonitoring(t.TempDir(), binaries, root+"/deploy/prometheus/rules.yaml"); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *suite) setUp(e *testscript.Env) error {
	namespace := strings.TrimPrefix(filepath.Base(e.WorkDir), "script-")
	st := &story{t: e.T().(testing.TB)}
	e.Values[storyKey{}] = st
	if _, err := s.Client.CoreV1().Namespaces().Create(context.Background(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
		}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	config, err := clientcmd.LoadFromFile(s.Kubeconfig)
	if err != nil {
		return err
	}
	config.Contexts[config.CurrentContext].Namespace = namespace
	root, err := filepath.Abs(top)
	if err != nil {
		return err
	}
	e.Setenv("NAMESPACE", namespace)
	e.Setenv("KUBECONFIG", e.WorkDir+"/.kubeconfig")
	e.Setenv("HOME", e.WorkDir)
	e.Setenv("PATH", s.tools+":"+os.Getenv("PATH"))
	e.Setenv("CHART", root+"/helm/postbridge")
	e.Setenv("EXAMPLES", root+"/helm/postbridge/examples")
	e.Defer(func() {
		if st.t.Failed() {
			st.t.Log(s.state(namespace))
		}
		// Pods that still run would slow the other stories.
		if err := s.Client.CoreV1().Namespaces().Delete(context.Background(), namespace,
			metav1.DeleteOptions{}); err != nil {
			st.t.Error(err)
		}
		if st.nats != nil {
			st.nats.stop()
		}
	})
	return errors.Join(
		clientcmd.WriteToFile(*config, e.WorkDir+"/.kubeconfig"),
		os.Symlink(root+"/helm", e.WorkDir+"/helm"), // the README uses this path
	)
}

// state describes the objects of a namespace, for a failed story.
func (s *suite) state(namespace string) string {
	var b strings.Builder
	for _, args := range [][]string{
		{"get", "pods,jobs,pvc", "--output", "wide"}, {"get", "events", "--sort-by", ".lastTimestamp"},
		{"logs", "--selector", "app.kubernetes.io/name=postbridge", "--prefix", "--tail", "50"},
	} {
		cmd := exec.Command(filepath.Join(s.tools, "kubectl"),
			append([]string{"--kubeconfig", s.Kubeconfig, "--namespace", namespace}, args...)...)
		output, _ := cmd.CombinedOutput() // has the error, too
		fmt.Fprintf(&b, "kubectl %s\n%s\n", strings.Join(args, " "), output)
	}
	return b.String()
}

// cmdBalance starts a balancer for a Service: `balance NAME`. Its URL is in $INGEST.
func (s *suite) cmdBalance(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithCancel(context.Background())
	b, err := startBalancer(ctx, s.Client, ts.Getenv("NAMESPACE"), args[0])
	ts.Check(err)
	ts.Defer(func() { cancel(); b.server.Close() })
	eventually(ts, "an endpoint", func() error {
		if b.next() == noEndpoint {
			return errors.New("none is ready")
		}
		return nil
	})
	ts.Setenv("INGEST", b.server.URL)
}

// cmdCrash kills the container of a pod: `crash POD`.
func (s *suite) cmdCrash(ts *testscript.TestScript, _ bool, args []string) {
	for _, k := range s.nodes {
		if c := k.containerOf(ts.Getenv("NAMESPACE"), args[0]); c != nil {
			c.signal(syscall.SIGKILL)
			return
		}
	}
	ts.Fatalf("no container of %s runs", args[0])
}

// cmdEventually runs a command until its output contains a text: `eventually TEXT COMMAND...`.
func (s *suite) cmdEventually(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, strings.Join(args, " "), func() error {
		cmd := exec.Command(args[1], args[2:]...)
		cmd.Dir, cmd.Env = ts.MkAbs("."), []string{
			"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "KUBECONFIG=" + ts.Getenv("KUBECONFIG"),
		}
		if program, err := exec.LookPath(filepath.Join(s.tools, args[1])); err == nil {
			cmd.Path, cmd.Err = program, nil
		}
		output, err := cmd.CombinedOutput()
		if !strings.Contains(string(output), args[0]) {
			return fmt.Errorf("it ended with %v; output: %s", err, output) //nolint:errorlint // nil, too
		}
		return nil
	})
}

// cmdStored checks that each event in FILE, which send has written for acknowledged postbacks, is stored exactly once
// on the bus of the environment: `stored FILE`.
func (s *suite) cmdStored(ts *testscript.TestScript, _ bool, args []string) {
	acked := make(map[string]bool)
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		id, _, _ := strings.Cut(line, "\t")
		acked[strings.TrimSpace(id)] = true
	}
	if len(acked) == 0 {
		ts.Fatalf("%s has no acknowledged postback", args[0])
	}
	stored := 0
	eventually(ts, "everything on the bus", func() error {
		cmd := exec.Command(filepath.Join(s.tools, "postbridge"), "tail", "--from", "start", "--timeout", "3s")
		for _, name := range busSettings() {
			cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("tail: %w: %s", err, &stderr)
		}
		seen := make(map[string]bool)
		for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
			var event struct{ ID string }
			ts.Check(json.Unmarshal(lines.Bytes(), &event))
			if seen[event.ID] {
				ts.Fatalf("the event %s is on the bus twice", event.ID)
			}
			seen[event.ID] = true
		}
		missing := 0
		for id := range acked {
			if !seen[id] {
				missing++
			}
		}
		if stored = len(seen); missing > 0 {
			return fmt.Errorf("%d of %d are missing", missing, len(acked))
		}
		return nil
	})
	ts.Logf("%d acknowledged, %d stored, each once", len(acked), stored)
}

// busSettings are the variables that nats and kafka set for readers of the bus.
func busSettings() []string {
	return []string{
		"POSTBRIDGE_PUBLISH", "POSTBRIDGE_NATS_URL", "POSTBRIDGE_NATS_USER", "POSTBRIDGE_NATS_PASSWORD",
		"POSTBRIDGE_NATS_CREDS_FILE", "POSTBRIDGE_NATS_TLS_CA_FILE",
		"POSTBRIDGE_KAFKA_BROKERS", "POSTBRIDGE_KAFKA_SASL_MECHANISM", "POSTBRIDGE_KAFKA_USER",
		"POSTBRIDGE_KAFKA_PASSWORD_FILE", "POSTBRIDGE_KAFKA_TLS_CA_FILE",
	}
}

func eventually(ts *testscript.TestScript, what string, try func() error) {
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("not in time: %s: %v", what, err)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// cmdReadme follows a section of the chart's README: it writes YAML that begins with the name of a file to that file,
// and runs commands. `readme SECTION`.
func (s *suite) cmdReadme(ts *testscript.TestScript, _ bool, args []string) {
	text, err := os.ReadFile(top + "/helm/postbridge/README.md")
	ts.Check(err)
	_, section, ok := strings.Cut(string(text), "\n## "+args[0]+"\n")
	if !ok {
		ts.Fatalf("the README has no section %s", args[0])
	}
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := regexp.MustCompile("(?s)```(sh|yaml)\n(.*?)```").FindAllStringSubmatch(section, -1)
	if len(blocks) == 0 {
		ts.Fatalf("the section %s has no file and no command", args[0])
	}
	for _, block := range blocks {
		if block[1] == "yaml" {
			name, _, _ := strings.Cut(strings.TrimPrefix(block[2], "# "), "\n")
			ts.Check(os.WriteFile(ts.MkAbs(name), []byte(block[2]), 0o644))
			continue
		}
		ts.Check(ts.Exec("sh", "-exc", block[2]))
	}
}
