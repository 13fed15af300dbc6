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

// TestTaken checks that a real API server accepts all renderings: every field is known, every value allowed, and the
// pods satisfy the Pod Security Standard "restricted". It rejects wrong renderings.
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
	// A Pod needs a service account. Its controller does not run here.
	if _, err := server.Client.CoreV1().ServiceAccounts("orders").Create(ctx, &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "default"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// apply returns the errors and warnings of the server for a rendering.
	apply := func(text string) string {
		cmd := exec.CommandContext(ctx, filepath.Join(tools, "kubectl"), "--kubeconfig", server.Kubeconfig,
			"--namespace", "orders",
			"apply", "--dry-run=server", "--validate=strict", "--filename", "-")
		cmd.Stdin = strings.NewReader(text)
		output, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(output), "Warning") {
			return string(output) + " "
		}
		return ""
	}
	for _, r := range renderings(t) {
		if errs := apply(r.render(t)); errs != "" {
			t.Errorf("%s: %s", r.name, errs)
		}
	}
	if errs := apply(repairManifest(t)); errs != "" {
		t.Errorf("the Pod that repairs a spool, in the README: %s", errs)
	}
	good := rendering{args: []string{"--values", chart + "/examples/nats.yaml"}}.render(t)
	for from, bad := range map[string]struct{ to, want string }{
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
		if errs := apply(strings.ReplaceAll(good, from, bad.to)); !strings.Contains(errs, bad.want) {
			t.Errorf("%q instead of %q: errors %q, want %q", bad.to, from, errs, bad.want)
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
