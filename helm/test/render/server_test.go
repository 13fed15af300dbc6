package render

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/postbridge/postbridge/helm/test/controlplane"
)

// TestTaken has a real API server take all renderings: every field is known to it, every value allowed, and the pods
// are "restricted". It says so of what is wrong with one, too.
func TestTaken(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	tools := os.Getenv("KUBE_TOOLS") // see the Makefile
	server, err := controlplane.Start(ctx, tools, t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	if err := server.Define(ctx, filepath.Join(tools, "definitions")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: "orders", Labels: map[string]string{"pod-security.kubernetes.io/warn": "restricted"},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// A Pod needs it. In a cluster a controller creates it, which does not run here.
	if _, err := server.Client.CoreV1().ServiceAccounts("orders").Create(ctx, &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "default"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// apply has the server check what was rendered, and returns what it says if it is not content.
	apply := func(text string) string {
		cmd := exec.CommandContext(ctx, filepath.Join(tools, "kubectl"), "--kubeconfig", server.Kubeconfig,
			"--namespace", "orders",
			"apply", "--dry-run=server", "--validate=strict", "--filename", "-")
		cmd.Stdin = strings.NewReader(text)
		said, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(said), "Warning") {
			return string(said) + " "
		}
		return ""
	}
	for _, r := range renderings(t) {
		if said := apply(r.render(t)); said != "" {
			t.Errorf("%s: %s", r.name, said)
		}
	}
	if said := apply(repairManifest(t)); said != "" {
		t.Errorf("the Pod that repairs a spool, in the README: %s", said)
	}
	good := rendering{args: []string{"--values", chart + "/examples/nats.yaml"}}.render(t)
	for from, bad := range map[string]struct{ to, said string }{
		"enableServiceLinks:": {"enableServiceLink:",
			`unknown field "spec.template.spec.enableServiceLink"`},
		"runAsNonRoot: true": {"runAsNonRoot: false", "runAsNonRoot != true"},
		"whenScaled: Retain": {"whenScaled: Keep", `Unsupported value: "Keep"`},
		"endpoints:\n":       {"endpoint:\n", `unknown field "spec.endpoint"`},
		"alert: PostbridgeNotReady": {"alarm: PostbridgeNotReady",
			`unknown field "spec.groups[0].rules[0].alarm"`},
		"persistentVolumeClaimRetention": {"persistentVolumeClaimRetain",
			`unknown field "spec.persistentVolumeClaimRetainPolicy"`},
	} {
		if said := apply(strings.ReplaceAll(good, from, bad.to)); !strings.Contains(said, bad.said) {
			t.Errorf("of %q in place of %q the server says %q", bad.to, from, said)
		}
	}
}

// TestRepairPod checks the Pod in the chart's README: it has the claim, the image and the security contexts of a
// replica.
func TestRepairPod(t *testing.T) {
	rendered := objects(t, rendering{args: []string{"--values", chart + "/examples/nats.yaml"}}.render(t))
	replica := of[appsv1.StatefulSet](t, rendered, "StatefulSet")[0]
	pod := of[corev1.Pod](t, objects(t, repairManifest(t)), "Pod")[0]
	checkPod(t, &corev1.PodTemplateSpec{Spec: pod.Spec})
	repair, serve := pod.Spec.Containers[0], replica.Spec.Template.Spec.Containers[0]
	if repair.Image != serve.Image || !reflect.DeepEqual(repair.SecurityContext, serve.SecurityContext) ||
		!reflect.DeepEqual(pod.Spec.SecurityContext, replica.Spec.Template.Spec.SecurityContext) {
		t.Errorf("image or security context differ from the replica's: %+v", pod.Spec)
	}
	want := replica.Spec.VolumeClaimTemplates[0].Name + "-" + replica.Name + "-0"
	if claim := pod.Spec.Volumes[0].PersistentVolumeClaim; claim == nil || claim.ClaimName != want {
		t.Errorf("claim %+v, want %s", claim, want)
	}
}

// repairManifest returns the block repair.yaml of the chart's README.
func repairManifest(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(chart + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, manifest, ok := strings.Cut(string(text), "```yaml\n# repair.yaml\n")
	if !ok {
		t.Fatal("the README has no block repair.yaml")
	}
	manifest, _, _ = strings.Cut(manifest, "```")
	return manifest
}
