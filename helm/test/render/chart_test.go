package render

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	klabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const (
	top   = "../../.." // root of the repository
	chart = top + "/helm/postbridge"
)

var update = flag.Bool("update", false, "write testdata/*.yaml and the table in the README of the chart anew")

// rendering is the chart rendered with one set of values.
type rendering struct {
	name string
	args []string // of helm
}

func examples(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(chart + "/examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	return files
}

// renderings returns the renderings of all examples, and of all values that switch objects on and off.
func renderings(t *testing.T) (all []rendering) {
	t.Helper()
	switches := map[string][]string{
		"plain":       nil,
		"monitoring":  {"--set", "serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true"},
		"pod-monitor": {"--set", "serviceMonitor.enabled=true,serviceMonitor.kind=PodMonitor"},
		"labels": {"--set-json", `serviceMonitor={"enabled":true,"labels":{"release":"a"}}`, "--set-json",
			`prometheusRule={"enabled":true,"labels":{"release":"a"},` +
				`"runbook":"https://runbooks.example.com/postbridge","tradingHours":"MCX","holidays":["2026-11-10"]}`,
			"--set-json", `podLabels={"team":"orders"}`, "--set-json", `podAnnotations={"note":"x"}`, "--set-json",
			`serviceAccount={"annotations":{"a":"b"}}`},
		"ingress": {"--set", "ingress.enabled=true,ingress.host=postbacks.example.com,ingress.className=nginx," +
			"ingress.tlsSecret=tls", "--set-json", `ingress.annotations={"a":"b"}`},
		"httproute": {"--set", "httpRoute.enabled=true,httpRoute.hostnames={postbacks.example.com}", "--set-json",
			`httpRoute.parentRefs=[{"name":"public","namespace":"gateway"}]`},
		"off": {"--set", "networkPolicy.enabled=false,podDisruptionBudget.enabled=false," +
			"topologySpreadConstraints=null"},
		"pods": {"--set-json", `nodeSelector={"disk":"ssd"}`, "--set-json",
			`tolerations=[{"key":"edge","operator":"Exists"}]`, "--set",
			"priorityClassName=system-cluster-critical", "--set-json", `imagePullSecrets=["registry",{"name":"mirror"}]`,
			"--set-json", `affinity={"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":` +
				`{"nodeSelectorTerms":[{"matchExpressions":[{"key":"disk","operator":"Exists"}]}]}}}`,
			"--set-json", `resources={"limits":{"cpu":"1","memory":"1Gi"}}`, "--set", "image.digest=sha256:" +
				strings.Repeat("0", 64)},
		"extra": {"--set-json", `extraEnv=[{"name":"GOMEMLIMIT","value":"400MiB"}]`, "--set-json",
			`extraVolumes=[{"name":"more","emptyDir":{}}]`, "--set-json",
			`extraVolumeMounts=[{"name":"more","mountPath":"/more"}]`, "--set-json",
			`extraContainers=[{"name":"token","image":"token:v1","volumeMounts":[{"name":"more","mountPath":"/more"}],` +
				`"securityContext":{"allowPrivilegeEscalation":false,"readOnlyRootFilesystem":true,` +
				`"capabilities":{"drop":["ALL"]}}}]`},
		"service": {"--set", "service.type=LoadBalancer,service.port=8443,fullnameOverride=edge", "--set-json",
			`service.annotations={"a":"b"}`, "--set-json", `service.extraSpec={"externalTrafficPolicy":"Local",` +
				`"loadBalancerClass":"example.com/internal","loadBalancerSourceRanges":["10.0.0.0/8"],` +
				`"ipFamilyPolicy":"SingleStack","ipFamilies":["IPv4"]}`},
		"tls": {"--set", "tls.existingSecret=edge-tls,maxConnections=4096,idleTimeout=75s"},
		"token": {"--set", "secret.data=null,secret.existingSecret=s,secret.keys={KITE_SECRETS,ADMIN_TOKEN}," +
			"serviceMonitor.enabled=true", "--set-json", `serviceMonitor.extraEndpoint={"scrapeTimeout":"5s",` +
			`"relabelings":[{"targetLabel":"desk","replacement":"one"}]}`},
		"storage": {"--set", "persistence.storageClass=fast,persistence.accessMode=ReadWriteOncePod," +
			"persistence.size=100Gi", "--set-json", `persistence.labels={"velero.io/exclude-from-backup":"true"}`,
			"--set-json", `persistence.annotations={"a":"b"}`},
		"no-class": {"--set", "persistence.storageClass=-"},
		"settings": {"--set-string",
			"dhan.clientIds={1000000001,1000000002},upstox.userIds={7ABC12},fyers.clientIds={XA00001,XA00002}", "--set",
			"secret.data=null,secret.existingSecret=s,secret.keys={KITE_SECRETS,DHAN_TOKENS,UPSTOX_TOKENS,FYERS_TOKENS}," +
				"kite.checksum=user_id," +
				"prefix=desk1,nats.maxBytes=10GiB,log.level=debug,log.format=text"},
	}
	onBus := map[string][]string{
		"drain": {"--set", "drain.ordinals={3,4}"},
		"both": {"--set", `publish=nats\,kafka,nats.url=tls://a:4222\,tls://b:4223,nats.user=edge,` +
			`kafka.brokers={a:9092,b:9093},nats.tls.existingSecret=n,nats.tls.cert=tls.crt,nats.tls.key=tls.key,` +
			`kafka.tls.existingSecret=k,kafka.tls.cert=tls.crt,kafka.tls.key=tls.key,drain.ordinals={5}`},
		"peers": {"--set-json", `networkPolicy.busTo=[{"ipBlock":{"cidr":"10.0.0.0/8"}}]`, "--set",
			"networkPolicy.busPorts={4222,9092}", "--set-json", `networkPolicy.adminFrom=[]`, "--set-json",
			`networkPolicy.extraEgress=[{"ports":[{"port":443,"protocol":"TCP"}]}]`},
		"websocket": {"--set", `publish=nats,nats.url=wss://nats.example.com\,ws://nats:8080`},
		"reconcile": {"--set", "reconcile.enabled=true,reconcile.existingSecret=a,reconcile.keys={KITE_ACCESS_TOKENS," +
			"DHAN_ACCESS_TOKENS,UPSTOX_ACCESS_TOKENS,FYERS_ACCESS_TOKENS},secret.data=null,secret.existingSecret=s," +
			"secret.keys={KITE_SECRETS,KITE_TOKENS,NATS_PASSWORD,KAFKA_PASSWORD},tls.existingSecret=t," +
			"nats.tls.existingSecret=n,kafka.tls.existingSecret=k", "--set",
			"reconcile.every=5m,reconcile.grace=1m,reconcile.knownOnly=true,reconcile.marketHours=false," +
				"reconcile.accounts={kite/AB1234,dhan/1000000003},serviceMonitor.enabled=true,drain.ordinals={3}"},
		// A login of its own for both buses, one of which is not published to.
		"reconcile-login": {"--set", "reconcile.enabled=true,reconcile.existingSecret=a,reconcile.user=reconcile," +
			"reconcile.keys={KITE_ACCESS_TOKENS,NATS_CREDS,KAFKA_PASSWORD},secret.data=null,secret.existingSecret=s," +
			"secret.keys={KITE_SECRETS,ADMIN_TOKEN,NATS_PASSWORD,NATS_TOKEN,KAFKA_PASSWORD}"},
		"logins": {
			"--set", "secret.existingSecret=s,secret.keys={KITE_SECRETS,KITE_TOKENS,DHAN_TOKENS,UPSTOX_TOKENS,FYERS_TOKENS," +
				"NATS_CREDS,NATS_PASSWORD,NATS_TOKEN,NATS_NKEY,KAFKA_PASSWORD},drain.ordinals={3}",
			"--set", `publish=nats\,kafka,nats.url=nats://nats-2\,nats://10.0.0.5\,nats://nats-1:4333/,` +
				`kafka.brokers={a:9092}`,
		},
	}
	// The Secret still has keys of a bus that is no longer published to.
	onBus["moved"] = append(slices.Clone(onBus["logins"][:2]), "--set",
		"publish=kafka,kafka.brokers={a:9092},drain.ordinals={3}")
	for _, file := range examples(t) {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		some := map[string][]string{"plain": nil, "drain": onBus["drain"]}
		switch name {
		case "embedded":
			some = switches
		case "kafka", "nats", "reconcile":
			some = maps.Clone(switches)
			maps.Copy(some, onBus)
		}
		for _, s := range slices.Sorted(maps.Keys(some)) {
			all = append(all, rendering{name + "/" + s, append([]string{"--values", file}, some[s]...)})
		}
	}
	return all
}

// helm runs helm and returns its output.
func helm(args ...string) (string, error) {
	cmd := exec.Command(os.Getenv("HELM"), args...) // see the Makefile
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return out.String(), err
}

func template(args ...string) (string, error) {
	return helm(append([]string{"template", "postbridge", chart, "--namespace", "orders", "--kube-version", "1.37.0"},
		args...)...)
}

func (r rendering) render(t *testing.T) string {
	t.Helper()
	text, err := template(r.args...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// objects returns the objects in rendered manifests.
func objects(t *testing.T, text string) (all []*unstructured.Unstructured) {
	t.Helper()
	for d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096); ; {
		u := new(unstructured.Unstructured)
		if err := d.Decode(u); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if u.Object != nil {
			all = append(all, u)
		}
	}
}

// of returns the objects of a kind.
func of[T any](t *testing.T, all []*unstructured.Unstructured, kind string) (found []*T) {
	t.Helper()
	for _, u := range all {
		if u.GetKind() != kind {
			continue
		}
		o := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, o, true); err != nil {
			t.Fatal(err)
		}
		found = append(found, o)
	}
	return found
}

func TestLint(t *testing.T) {
	for _, file := range append(examples(t), chart+"/values.yaml") {
		if output, err := helm("lint", "--strict", chart, "--values", file); err != nil {
			t.Errorf("%s: %v\n%s", file, err, output)
		}
	}
}

// TestGolden compares the rendered examples with golden files. -update rewrites them.
func TestGolden(t *testing.T) {
	for _, file := range examples(t) {
		text, err := template("--values", file, "--set", "prometheusRule.enabled=false,dashboard.enabled=false")
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", filepath.Base(file))
		if *update {
			if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if text != string(want) {
			t.Errorf("%s is stale; go test ./render -update writes it anew, if that is what was meant. Rendered:\n%s",
				golden, text)
		}
	}
}

// TestRefused checks that values which cannot work are rejected, and the errors.
func TestRefused(t *testing.T) {
	kite := "secret.data.KITE_SECRETS=1=2"
	for set, want := range map[string]string{
		"":                           "no broker is enabled",
		"secret.data.NATS_TOKEN=x":   "no broker is enabled",
		"secret.keys={KITE_SECRETS}": "secret.keys is set without secret.existingSecret",
		kite + ",secret.data.DHAN_TOKENS=x,nats.url=nats://a,dhan.clientIds=1":  "/dhan/clientIds",
		kite + ",nats.url=nats://a,upstox.userIds={7ABC12}":                     "put UPSTOX_TOKENS into the Secret",
		kite + ",nats.url=nats://a,fyers.clientIds={XA00001}":                   "put FYERS_TOKENS into the Secret",
		"secret.data.DHAN_TOKENS=x,secret.data.KITE_TOKENS=y,nats.url=nats://a": "Kite needs both",
		kite + ",publish=embedded,replicaCount=1,nats.replicas=3":               "set nats.replicas to 1",
		"secret.existingSecret=s," + kite:                                       "set only one",
		kite:                                                                    "set nats.url",
		kite + ",publish=kafka":                                                 "set kafka.brokers",
		kite + ",publish=nats\\,kafka":                                          "set nats.url",
		kite + ",publish=embedded":                                              "set replicaCount to 1",
		kite + ",publish=redis":                                                 "/publish",
		kite + ",publish=embedded,replicaCount=1,drain.ordinals={1}":            "remove drain.ordinals",
		kite + ",nats.url=nats://a,drain.ordinals={1}":                          "reduce replicaCount, or remove it",
		kite + ",nats.url=nats://a,terminationGracePeriodSeconds=39":            "at least endpointDelaySeconds + 30",
		kite + ",nats.url=nats://a,ingress.enabled=true":                        "set ingress.host",
		kite + ",nats.url=nats://a,httpRoute.enabled=true":                      "set httpRoute.parentRefs",
		kite + ",nats.url=nats://a,autoscaling.enabled=true":                    "set replicaCount for peak load",
		kite + ",nats.url=nats://a,replicacount=3":                              "'replicacount' not allowed",
		kite + ",nats.url=nats://a,nats.uri=x":                                  "'uri' not allowed",
		kite + ",nats.url=nats://a,spool.maxBytes=8Gi":                          "/spool/maxBytes",
		"secret.data.KITE_SECRET=1=2":                                           "'KITE_SECRETS', 'KITE_TOKENS'",
		kite + ",nats.url=nats://a,image.tag=v1,image.digest=sha256:x":          "/image/digest",
		kite + ",nats.url=nats://a,podDisruptionBudget.maxUnavailable=0":        "/podDisruptionBudget/maxUnavailable",
		kite + ",nats.url=nats://a,replicaCount=0":                              "/replicaCount",
		kite + ",nats.url=nats://a,persistence.accessMode=ReadWriteMany":        "/persistence/accessMode",
		kite + ",nats.url=nats://a,kite.checksum=none":                          "/kite/checksum",
		kite + ",nats.url=nats://a,maxConnections=1":                            "/maxConnections",
		kite + ",nats.url=nats://a,idleTimeout=620":                             "/idleTimeout",
		kite + ",nats.url=nats://a,tls.existingSecret=t,tls.key=":               "/tls/key",

		kite + ",publish=embedded,replicaCount=1,reconcile.enabled=true": "publish to an external bus",
		kite + ",nats.url=nats://a,reconcile.enabled=true":               "set reconcile.existingSecret",
		kite + ",nats.url=nats://a,reconcile.keys={KITE_SECRETS}":        "/reconcile/keys",
		kite + ",nats.url=nats://a,reconcile.accounts={AB1234}":          "/reconcile/accounts",
		kite + ",nats.url=nats://a,reconcile.every=60":                   "/reconcile/every",
		kite + ",nats.url=nats://a,prometheusRule.holidays={10-11-2026}": "/prometheusRule/holidays",
		kite + ",nats.url=nats://a,service.extraSpec.type=NodePort":      "/service/extraSpec",
		kite + ",nats.url=nats://a,serviceMonitor.extraEndpoint.port=x":  "/serviceMonitor/extraEndpoint",
		kite + ",nats.url=nats://a,imagePullSecrets[0].nam=x":            "/imagePullSecrets/0",

		kite + ",nats.url=nats://a,reconcile.enabled=true,reconcile.existingSecret=a,reconcile.keys={NATS_CREDS}": "" +
			"put KITE_ACCESS_TOKENS",
	} {
		_, err := template("--set", set)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", set, want, err)
		}
	}
}

// TestInvariants checks the rules that hold for all values.
func TestInvariants(t *testing.T) {
	for _, r := range renderings(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			all := objects(t, r.render(t))
			sets, jobs := of[appsv1.StatefulSet](t, all, "StatefulSet"), of[batchv1.Job](t, all, "Job")
			if len(sets) != 1 {
				t.Fatalf("%d StatefulSets", len(sets))
			}
			checkStatefulSet(t, sets[0])
			checkBuses(t, environment(&sets[0].Spec.Template))
			checkPod(t, &sets[0].Spec.Template)
			for _, j := range jobs {
				checkPod(t, &j.Spec.Template)
				checkDrain(t, sets[0], j)
			}
			deployments := of[appsv1.Deployment](t, all, "Deployment")
			for _, d := range deployments {
				checkReconcile(t, d, sets[0], of[corev1.Service](t, all, "Service"))
			}
			for _, s := range of[corev1.Service](t, all, "Service") {
				if s.Spec.Selector[component] != "reconcile" {
					checkService(t, s, sets[0], jobs, deployments)
				}
			}
			for _, p := range of[networkingv1.NetworkPolicy](t, all, "NetworkPolicy") {
				checkNetworkPolicy(t, p, environment(&sets[0].Spec.Template))
			}
			for _, i := range of[networkingv1.Ingress](t, all, "Ingress") {
				checkIngress(t, i)
			}
			checkServiceMonitor(t, all)
			for _, a := range of[corev1.ServiceAccount](t, all, "ServiceAccount") {
				if a.AutomountServiceAccountToken == nil || *a.AutomountServiceAccountToken {
					t.Error("the ServiceAccount has a token")
				}
			}
			for _, c := range of[corev1.ConfigMap](t, all, "ConfigMap") {
				if !strings.HasSuffix(c.Name, "-dashboard") {
					t.Errorf("ConfigMap %s: the environment comes from the values", c.Name)
				}
			}
		})
	}
}

func checkStatefulSet(t *testing.T, s *appsv1.StatefulSet) {
	t.Helper()
	retention := s.Spec.PersistentVolumeClaimRetentionPolicy
	if retention == nil || retention.WhenDeleted != appsv1.RetainPersistentVolumeClaimRetentionPolicyType ||
		retention.WhenScaled != appsv1.RetainPersistentVolumeClaimRetentionPolicyType {
		t.Errorf("claims are not kept: %+v", retention)
	}
	if s.Spec.PodManagementPolicy != appsv1.ParallelPodManagement {
		t.Error("a replica that does not come up keeps others from it")
	}
	if c := s.Spec.VolumeClaimTemplates; len(c) != 1 || c[0].Name != "postbridge-spool" {
		t.Errorf("claims %+v; the alert for a volume left behind knows them as postbridge-spool-…", c)
	}
	pod := &s.Spec.Template
	for name := range pod.Annotations {
		if strings.Contains(name, "checksum") {
			t.Errorf("annotation %s: nothing needs a restart", name)
		}
	}
	c := &pod.Spec.Containers[0]
	checkProbes(t, c)
	hook := c.Lifecycle.PreStop.Sleep
	if hook == nil || hook.Seconds < 1 {
		t.Fatal("a replica that goes away does not wait for those who still send to it")
	}
	const stop = 26 // seconds, the longest
	if grace := *pod.Spec.TerminationGracePeriodSeconds; grace < hook.Seconds+stop {
		t.Errorf("it is killed after %d s, and needs up to %d", grace, hook.Seconds+stop)
	}
	for _, constraint := range pod.Spec.TopologySpreadConstraints {
		if constraint.LabelSelector == nil ||
			!maps.Equal(constraint.LabelSelector.MatchLabels, s.Spec.Selector.MatchLabels) {
			t.Errorf("%s spreads others", constraint.TopologyKey)
		}
	}
}

func checkProbes(t *testing.T, c *corev1.Container) {
	t.Helper()
	for name, p := range map[string]*corev1.Probe{"livez": c.LivenessProbe, "readyz": c.ReadinessProbe} {
		if p == nil || p.HTTPGet == nil || p.HTTPGet.Path != "/"+name || p.HTTPGet.Port.StrVal != "admin" {
			t.Errorf("probe %s is %+v", name, p)
		}
	}
}

// checkPod checks the Pod Security Standard "restricted", and more.
func checkPod(t *testing.T, pod *corev1.PodTemplateSpec) {
	t.Helper()
	s := pod.Spec
	if s.EnableServiceLinks == nil || *s.EnableServiceLinks || s.AutomountServiceAccountToken == nil ||
		*s.AutomountServiceAccountToken {
		t.Error("service links or a token of the service account are in the pod")
	}
	p := s.SecurityContext
	if p == nil || p.RunAsNonRoot == nil || !*p.RunAsNonRoot || p.SeccompProfile == nil ||
		p.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Fatalf("security context of the pod: %+v", p)
	}
	// OpenShift assigns user and groups, and refuses others.
	assigned := p.RunAsUser == nil && p.RunAsGroup == nil && p.FSGroup == nil
	if assigned != strings.Contains(t.Name(), "openshift") || !assigned && (p.FSGroup == nil || *p.RunAsUser == 0) {
		t.Errorf("user and groups of the pod: %+v", p)
	}
	for _, c := range s.InitContainers {
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			t.Errorf("postbridge waits for the end of %s", c.Name)
		}
	}
	volumes := make(map[string]corev1.Volume)
	for _, v := range s.Volumes {
		volumes[v.Name] = v
		if v.Secret != nil && (v.Secret.DefaultMode == nil || *v.Secret.DefaultMode&0o007 != 0) {
			t.Errorf("the files of %s can be read by others", v.Name)
		}
	}
	for _, c := range s.Containers {
		if p := c.SecurityContext; p == nil || p.AllowPrivilegeEscalation == nil || *p.AllowPrivilegeEscalation ||
			p.ReadOnlyRootFilesystem == nil || !*p.ReadOnlyRootFilesystem ||
			p.Capabilities == nil || !slices.Equal(p.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
			len(p.Capabilities.Add) > 0 {
			t.Errorf("security context of %s: %+v", c.Name, p)
		}
		mounted := make(map[string]string) // path -> volume
		for _, m := range c.VolumeMounts {
			mounted[m.MountPath] = m.Name
			if m.SubPath != "" {
				t.Errorf("%s is mounted by a subPath: a change of it would not reach the pod", m.Name)
			}
			if m.Name != "postbridge-spool" && strings.HasPrefix(m.MountPath, "/etc/postbridge/") && !m.ReadOnly {
				t.Errorf("%s can be written", m.Name)
			}
		}
		data := "postbridge-spool"
		if c.Name == "reconcile" {
			data = "" // it keeps nothing
		}
		if mounted["/data"] != data {
			t.Errorf("what is at /data? %v", mounted)
		}
		for _, e := range c.Env {
			if strings.HasSuffix(e.Name, "_FILE") && !fileIsThere(e.Value, mounted, volumes) {
				t.Errorf("%s=%s is not mounted", e.Name, e.Value)
			}
			if e.ValueFrom != nil {
				t.Errorf("%s is in the environment, and would need a restart to change", e.Name)
			}
		}
	}
}

// fileIsThere reports whether a file is in a mounted volume, according to the pod spec.
func fileIsThere(path string, mounted map[string]string, volumes map[string]corev1.Volume) bool {
	v, ok := volumes[mounted[filepath.Dir(path)]]
	if !ok || v.Secret == nil {
		return v.EmptyDir != nil && mounted[filepath.Dir(path)] == "kafka-token" // a sidecar writes it
	}
	return v.Secret.Items == nil || slices.ContainsFunc(v.Secret.Items,
		func(i corev1.KeyToPath) bool { return i.Path == filepath.Base(path) })
}

// checkDrain checks that a Job has the volume of a replica and the settings of its bus, and none of brokers.
func checkDrain(t *testing.T, s *appsv1.StatefulSet, j *batchv1.Job) {
	t.Helper()
	pod := &j.Spec.Template
	if !slices.Equal(pod.Spec.Containers[0].Args, []string{"drain"}) {
		t.Errorf("the Job runs %v", pod.Spec.Containers[0].Args)
	}
	claim := ""
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			claim = v.PersistentVolumeClaim.ClaimName
		}
	}
	ordinal := strings.TrimPrefix(claim, "postbridge-spool-"+s.Name+"-")
	if want := fmt.Sprintf("%s-drain-%s-1", s.Name, ordinal); j.Name != want || claim == ordinal {
		t.Errorf("Job %s has the volume %s; the alert for a volume left behind knows the Job as %s", j.Name, claim,
			want)
	}
	replica := environment(&s.Spec.Template)
	for name, value := range environment(pod) {
		if replica[name] != value {
			t.Errorf("%s is %q for the drain, %q for the replica", name, value, replica[name])
		}
		if strings.Contains(name, "KITE") || strings.Contains(name, "DHAN") || strings.Contains(name, "UPSTOX") ||
			strings.Contains(name, "FYERS") || strings.HasPrefix(name, "POSTBRIDGE_TLS_") || strings.Contains(name, "ADMIN") {
			t.Errorf("the drain has %s", name)
		}
	}
	for name := range replica {
		if _, ok := environment(pod)[name]; !ok &&
			(strings.Contains(name, "_NATS_") || strings.Contains(name, "_KAFKA_")) {
			t.Errorf("the drain has no %s", name)
		}
	}
}

// checkReconcile checks that one pod has the access tokens and the settings of the replica's buses, and neither secrets
// of ingest nor the spool; that the replica has no access token; and that Prometheus finds the pod.
func checkReconcile(t *testing.T, d *appsv1.Deployment, s *appsv1.StatefulSet, services []*corev1.Service) {
	t.Helper()
	pod := &d.Spec.Template
	checkPod(t, pod)
	checkBuses(t, environment(pod))
	if d.Spec.Replicas == nil || *d.Spec.Replicas != 1 ||
		d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		t.Errorf("two pods may run at a time: %v replicas, %s", d.Spec.Replicas, d.Spec.Strategy.Type)
	}
	container := &pod.Spec.Containers[0]
	if args := container.Args; args[0] != "reconcile" || !slices.Contains(args, "--admin=:9090") {
		t.Errorf("the Deployment runs %v", args)
	}
	checkProbes(t, container)
	replica, tokens := environment(&s.Spec.Template), 0
	for name, value := range environment(pod) {
		broker := slices.ContainsFunc([]string{"KITE", "DHAN", "UPSTOX", "FYERS"},
			func(broker string) bool { return strings.Contains(name, broker) })
		switch {
		case strings.HasSuffix(name, "_ACCESS_TOKENS_FILE"):
			tokens++
			if replica[name] != "" {
				t.Errorf("the replica has %s", name)
			}
		case broker || strings.HasPrefix(name, "POSTBRIDGE_TLS_") || strings.Contains(name, "SPOOL") ||
			name == "POSTBRIDGE_DATA_DIR":
			t.Errorf("reconcile has %s", name)
		case filepath.Dir(value) == "/etc/postbridge/reconcile" || strings.HasSuffix(name, "_USER"): // its own login
		case replica[name] != value:
			t.Errorf("%s is %q for reconcile, %q for the replica", name, value, replica[name])
		}
	}
	if tokens == 0 {
		t.Error("reconcile has no access token")
	}
	checkLogin(t, pod)
	for _, v := range s.Spec.Template.Spec.Volumes {
		if v.Name == "reconcile" {
			t.Error("the replica has the Secret of reconcile")
		}
	}
	if !slices.ContainsFunc(services, func(s *corev1.Service) bool {
		return maps.Equal(s.Spec.Selector, d.Spec.Selector.MatchLabels) && s.Spec.ClusterIP == corev1.ClusterIPNone &&
			s.Spec.PublishNotReadyAddresses && s.Spec.Ports[0].TargetPort.StrVal == "admin"
	}) {
		t.Error("no headless Service selects reconcile")
	}
}

// checkLogin checks that reconcile has one login on each bus: that of the replica, or its own.
func checkLogin(t *testing.T, pod *corev1.PodTemplateSpec) {
	t.Helper()
	dirs := make(map[string]bool) // bus and directory of each secret
	for name, file := range environment(pod) {
		for _, bus := range []string{"NATS", "KAFKA"} {
			if strings.HasPrefix(name, "POSTBRIDGE_"+bus+"_") && strings.HasSuffix(name, "_FILE") &&
				!strings.Contains(name, "_TLS_") {
				dirs[bus+filepath.Dir(file)] = true
			}
		}
	}
	for _, bus := range []string{"NATS", "KAFKA"} {
		if dirs[bus+"/etc/postbridge/secret"] && dirs[bus+"/etc/postbridge/reconcile"] {
			t.Errorf("reconcile has two logins for %s", bus)
		}
	}
}

func environment(pod *corev1.PodTemplateSpec) map[string]string {
	all := make(map[string]string)
	for _, e := range pod.Spec.Containers[0].Env {
		all[e.Name] = e.Value
	}
	return all
}

// checkService checks that postbacks reach only replicas, and that the admin port is not exposed.
func checkService(
	t *testing.T, s *corev1.Service, set *appsv1.StatefulSet, jobs []*batchv1.Job, deployments []*appsv1.Deployment,
) {
	t.Helper()
	selects := func(labels map[string]string) bool {
		for name, value := range s.Spec.Selector {
			if labels[name] != value {
				return false
			}
		}
		return true
	}
	if !selects(set.Spec.Template.Labels) {
		t.Errorf("the Service %s selects no replica", s.Name)
	}
	for _, j := range jobs {
		if selects(j.Spec.Template.Labels) {
			t.Errorf("the Service %s selects the drain %s", s.Name, j.Name)
		}
	}
	for _, d := range deployments {
		if selects(d.Spec.Template.Labels) {
			t.Errorf("the Service %s selects %s", s.Name, d.Name)
		}
	}
	if !slices.ContainsFunc(set.Spec.Template.Spec.Containers[0].Ports,
		func(p corev1.ContainerPort) bool { return p.Name == s.Spec.Ports[0].TargetPort.StrVal }) {
		t.Errorf("the Service %s is for the port %s, which no replica has", s.Name, s.Spec.Ports[0].TargetPort.StrVal)
	}
	want := "http"
	if s.Spec.Ports[0].TargetPort.StrVal == "ingest" &&
		environment(&set.Spec.Template)["POSTBRIDGE_TLS_CERT_FILE"] != "" {
		want = "https"
	}
	if got := s.Spec.Ports[0].AppProtocol; got == nil || *got != want {
		t.Errorf("the Service %s speaks %v, not %s", s.Name, got, want)
	}
	headless := s.Spec.ClusterIP == corev1.ClusterIPNone
	if headless != (s.Spec.Ports[0].TargetPort.StrVal == "admin") || len(s.Spec.Ports) != 1 {
		t.Errorf("the Service %s has the ports %+v", s.Name, s.Spec.Ports)
	}
}

// checkServiceMonitor checks that it selects only the headless Services, and one of their ports; and a PodMonitor the
// pods with a port for it.
func checkServiceMonitor(t *testing.T, all []*unstructured.Unstructured) {
	t.Helper()
	for _, u := range all {
		var endpoints string
		switch u.GetKind() {
		case "ServiceMonitor":
			endpoints = "endpoints"
		case "PodMonitor":
			endpoints = "podMetricsEndpoints"
		default:
			continue
		}
		port := monitoredPort(t, u, endpoints, adminToken(t, all))
		text, err := json.Marshal(u.Object["spec"].(map[string]any)["selector"])
		var labels metav1.LabelSelector
		if err = errors.Join(err, json.Unmarshal(text, &labels)); err != nil {
			t.Fatal(err)
		}
		selector, err := metav1.LabelSelectorAsSelector(&labels)
		if err != nil {
			t.Fatal(err)
		}
		if u.GetKind() == "PodMonitor" {
			checkMonitoredPods(t, all, selector, port)
			continue
		}
		for _, s := range of[corev1.Service](t, all, "Service") {
			headless, selects := s.Spec.ClusterIP == corev1.ClusterIPNone, selector.Matches(klabels.Set(s.Labels))
			if selects != headless || headless && s.Spec.Ports[0].Name != port {
				t.Errorf("the ServiceMonitor selects %v of port %v; the Service %s: %v", selector, port, s.Name,
					selects)
			}
		}
	}
}

// monitoredPort returns the port of the only endpoint, which needs the token of the replica if there is one.
func monitoredPort(t *testing.T, u *unstructured.Unstructured, endpoints string, token bool) string {
	t.Helper()
	list, _, err := unstructured.NestedSlice(u.Object, "spec", endpoints)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	endpoint := list[0].(map[string]any)
	if _, ok := endpoint["authorization"]; ok != token {
		t.Errorf("the %s has a token: %v", u.GetKind(), ok)
	}
	return endpoint["port"].(string)
}

// checkMonitoredPods checks that the selector is that of the pods which have the port.
func checkMonitoredPods(t *testing.T, all []*unstructured.Unstructured, selector klabels.Selector, port string) {
	t.Helper()
	var pods []corev1.PodTemplateSpec
	for _, s := range of[appsv1.StatefulSet](t, all, "StatefulSet") {
		pods = append(pods, s.Spec.Template)
	}
	for _, d := range of[appsv1.Deployment](t, all, "Deployment") {
		pods = append(pods, d.Spec.Template)
	}
	for _, j := range of[batchv1.Job](t, all, "Job") {
		pods = append(pods, j.Spec.Template)
	}
	for _, pod := range pods {
		has := slices.ContainsFunc(pod.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == port })
		if selector.Matches(klabels.Set(pod.Labels)) != has {
			t.Errorf("the PodMonitor selects %v; a pod with the labels %v has the port: %v", selector, pod.Labels, has)
		}
	}
}

// adminToken reports whether the replica has an admin token.
func adminToken(t *testing.T, all []*unstructured.Unstructured) bool {
	t.Helper()
	replica := of[appsv1.StatefulSet](t, all, "StatefulSet")[0]
	return environment(&replica.Spec.Template)["POSTBRIDGE_ADMIN_TOKEN_FILE"] != ""
}

// checkBuses checks that a bus without publishing has no settings, which postbridge would reject.
func checkBuses(t *testing.T, environ map[string]string) {
	t.Helper()
	for name := range environ {
		bus, _, _ := strings.Cut(strings.TrimPrefix(name, "POSTBRIDGE_"), "_")
		if (bus == "NATS" || bus == "KAFKA") && !strings.Contains(environ["POSTBRIDGE_PUBLISH"], strings.ToLower(bus)) {
			t.Errorf("%s is set, and nothing is published there", name)
		}
	}
}

// component is the label that tells the pods of a release apart.
const component = "app.kubernetes.io/component"

// checkNetworkPolicy checks that only DNS and the ports of the bus are open, and for reconcile also that of https.
func checkNetworkPolicy(t *testing.T, p *networkingv1.NetworkPolicy, environ map[string]string) {
	t.Helper()
	want := map[int32]bool{53: true, 5353: true}
	if p.Spec.PodSelector.MatchLabels[component] == "reconcile" {
		want = map[int32]bool{443: true}
	} else if strings.HasSuffix(t.Name(), "/peers") { // sets them
		want[4222], want[9092], want[443] = true, true, true
	} else {
		if environ["POSTBRIDGE_KAFKA_OAUTH_TOKEN_FILE"] != "" {
			want[443] = true // the token endpoint
		}
		for server := range strings.SplitSeq(environ["POSTBRIDGE_NATS_URL"]+","+environ["POSTBRIDGE_KAFKA_BROKERS"],
			",") {
			if server == "" {
				continue
			}
			scheme, host, _ := strings.Cut(server, "://")
			_, text, ok := strings.Cut(strings.TrimSuffix(cmp.Or(host, server), "/"), ":")
			port, err := strconv.Atoi(text)
			if ok != (err == nil) {
				t.Fatalf("%s: %v", server, err)
			}
			if port == 0 && scheme == "wss" {
				port = 443
			}
			want[int32(cmp.Or(port, 4222))] = true
		}
	}
	open := make(map[int32]bool)
	for _, e := range p.Spec.Egress {
		for _, port := range e.Ports {
			open[port.Port.IntVal] = true
		}
	}
	if !maps.Equal(open, want) {
		t.Errorf("open are the ports %v, needed are %v", open, want)
	}
}

func checkIngress(t *testing.T, i *networkingv1.Ingress) {
	t.Helper()
	for _, p := range i.Spec.Rules[0].HTTP.Paths {
		if !slices.Contains([]string{"/kite", "/dhan", "/upstox", "/fyers"}, p.Path) || p.Backend.Service.Port.Name != "ingest" {
			t.Errorf("the Ingress passes on %s to %s", p.Path, p.Backend.Service.Port.Name)
		}
	}
}

// TestEnvironment compares the names of settings in the chart and in the program, both ways.
func TestEnvironment(t *testing.T) {
	readme, err := os.ReadFile(top + "/cmd/postbridge/README.md") // a test compares its table with the program
	if err != nil {
		t.Fatal(err)
	}
	known, inChart := make(map[string]bool), make(map[string]string)
	for line := range strings.Lines(string(readme)) {
		if name, ok := strings.CutPrefix(line, "| `POSTBRIDGE_"); ok {
			name, _, _ = strings.Cut(name, "`")
			known["POSTBRIDGE_"+name] = true
		}
	}
	for _, r := range renderings(t) {
		all := objects(t, r.render(t))
		for _, s := range of[appsv1.StatefulSet](t, all, "StatefulSet") {
			maps.Copy(inChart, environment(&s.Spec.Template))
		}
		for _, d := range of[appsv1.Deployment](t, all, "Deployment") {
			maps.Copy(inChart, environment(&d.Spec.Template))
		}
	}
	delete(inChart, "GOMEMLIMIT")
	for name := range inChart {
		if !known[name] {
			t.Errorf("the chart sets %s, which the program does not know", name)
		}
	}
	for name := range known {
		// A secret is set by value or by file.
		base := strings.TrimSuffix(name, "_FILE")
		if inChart[base] == "" && inChart[base+"_FILE"] == "" && !withoutValue(base) {
			t.Errorf("the chart has no value for %s", name)
		}
	}
}

// withoutValue reports whether extraEnv sets a setting: few need it.
func withoutValue(name string) bool {
	return strings.HasSuffix(name, "_API_URL") || slices.Contains([]string{
		"POSTBRIDGE_KAFKA_CLIENT_ID", "POSTBRIDGE_KAFKA_COMPRESSION", "POSTBRIDGE_KAFKA_OAUTH_TOKEN",
		"POSTBRIDGE_KAFKA_OAUTH_EXTENSIONS", "POSTBRIDGE_NATS_DOMAIN", "POSTBRIDGE_NATS_INBOX_PREFIX",
		"POSTBRIDGE_NATS_TLS_FIRST",
	}, name)
}
