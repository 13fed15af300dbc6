//go:build linux

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// podWorker runs one pod, from the mounting of its volumes to its removal.
type podWorker struct {
	k       *kubelet
	pod     *corev1.Pod // as first read from the API
	address string
	dir     string

	ctx  context.Context // ends when the API has deleted the pod
	stop context.CancelFunc

	once        sync.Once
	terminating chan struct{} // closed when the pod is to terminate
	grace       time.Duration // set before terminating is closed

	mu        sync.Mutex
	container *container // guarded by mu; nil while none runs
	restarts  int32      // guarded by mu
	readySince,
	startTime metav1.Time // guarded by mu; readySince is zero while not ready
}

func newPodWorker(ctx context.Context, k *kubelet, pod *corev1.Pod) *podWorker {
	w := &podWorker{
		k: k, pod: pod, address: k.addresses.take(), dir: filepath.Join(k.dir, "pods", string(pod.UID)),
		terminating: make(chan struct{}), startTime: metav1.Now(),
	}
	w.ctx, w.stop = context.WithCancel(ctx)
	return w
}

// terminate starts the termination of the pod.
func (w *podWorker) terminate(grace time.Duration) {
	w.once.Do(func() {
		w.grace = grace
		close(w.terminating)
	})
}

func (w *podWorker) running() *container {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.container
}

func (w *podWorker) run() {
	defer os.RemoveAll(w.dir)
	for {
		select {
		case <-w.terminating:
			w.k.remove(w.ctx, w.pod)
			return
		default:
		}
		c, err := w.startContainer()
		if err == nil {
			if w.runContainer(c) {
				return
			}
		} else if w.ctx.Err() == nil {
			w.patch(corev1.PodPending, waiting("ContainerCreating", err.Error()))
		}
		select {
		case <-w.ctx.Done():
			return
		case <-w.terminating:
		case <-time.After(retryInterval):
		}
	}
}

// runContainer waits for a container to end, and reports whether the pod ends, too.
func (w *podWorker) runContainer(c *container) (over bool) {
	ctx, cancel := context.WithCancel(w.ctx)
	w.setContainer(c)
	w.patch(corev1.PodRunning, running(c))
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	beside.Go(func() { w.probe(ctx, c) })
	beside.Go(func() { w.refreshSecrets(ctx) })
	select {
	case <-c.done:
		w.setContainer(nil)
		return w.ended(c)
	case <-w.terminating:
		w.endInOrder(c)
		w.setContainer(nil)
		w.ended(c)
		w.k.remove(w.ctx, w.pod)
		return true
	case <-w.ctx.Done():
		c.signal(syscall.SIGKILL)
		<-c.done
		return true
	}
}

// endInOrder stops a container as the kubelet does: preStop hook, SIGTERM, and SIGKILL after the grace period.
func (w *podWorker) endInOrder(c *container) {
	over, cancel := context.WithTimeout(w.ctx, w.grace)
	defer cancel()
	if hook := w.spec().Lifecycle; hook != nil && hook.PreStop != nil {
		select {
		case <-time.After(time.Duration(hook.PreStop.Sleep.Seconds) * time.Second):
		case <-c.done:
		case <-over.Done():
		}
	}
	c.signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-over.Done():
		c.signal(syscall.SIGKILL)
	}
	<-c.done
}

// ended patches how a container ended into the status, and reports whether the pod ends, too.
func (w *podWorker) ended(c *container) (over bool) {
	state := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: c.exitCode(), StartedAt: metav1.Time{Time: c.started}, FinishedAt: metav1.Now(), Reason: "Completed",
	}}
	switch {
	case w.pod.Spec.RestartPolicy != corev1.RestartPolicyAlways && c.exitCode() == 0:
		w.patch(corev1.PodSucceeded, state)
		return true
	case w.pod.Spec.RestartPolicy == corev1.RestartPolicyNever:
		state.Terminated.Reason = "Error"
		w.patch(corev1.PodFailed, state)
		return true
	default:
		w.mu.Lock()
		w.restarts++
		w.mu.Unlock()
		w.patch(corev1.PodRunning, waiting("CrashLoopBackOff",
			fmt.Sprintf("the container ended with exit code %d", c.exitCode())))
		return false
	}
}

func (w *podWorker) setContainer(c *container) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.container, w.readySince = c, metav1.Time{}
}

// logFile returns the log file of a pod. A later pod of the same name has another.
func (w *podWorker) logFile() string { return filepath.Join(w.k.dir, "logs", string(w.pod.UID)+".log") }

func (w *podWorker) spec() *corev1.Container { return &w.pod.Spec.Containers[0] }

func (w *podWorker) startContainer() (*container, error) {
	if err := supported(w.pod); err != nil {
		return nil, err
	}
	program := w.k.image(w.spec().Image)
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("ErrImagePull: there is no image %s", w.spec().Image)
	}
	volumes, err := w.k.mountVolumes(w.ctx, w.pod, w.dir)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(w.dir, "root")
	for _, dir := range []string{"proc", "data", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return nil, err
		}
	}
	environment, err := w.environment()
	if err != nil {
		return nil, err
	}
	security, podSecurity := w.spec().SecurityContext, w.pod.Spec.SecurityContext
	spec := containerSpec{
		Hostname: w.pod.Name, Address: w.address, Root: root, ReadOnlyRoot: *security.ReadOnlyRootFilesystem,
		NoNewPrivileges:  !*security.AllowPrivilegeEscalation,
		DropCapabilities: slices.Contains(security.Capabilities.Drop, "ALL"),
		UID:              int(*podSecurity.RunAsUser),
		GID:              int(*podSecurity.RunAsGroup),
		Groups:           []int{int(*podSecurity.FSGroup)},
		Args:             append([]string{"/postbridge"}, w.spec().Args...), Env: environment,
		Mounts: []mount{{From: program, To: "/postbridge", ReadOnly: true},
			{From: "/etc/hosts", To: "/etc/hosts", ReadOnly: true}},
	}
	for _, m := range w.spec().VolumeMounts {
		spec.Mounts = append(spec.Mounts, mount{From: volumes[m.Name], To: m.MountPath, ReadOnly: m.ReadOnly})
	}
	log, err := openLog(w.logFile())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	return startContainer(spec, log)
}

// supported rejects specs that use features of a real kubelet which this one lacks, so that no story passes for lack of
// a feature.
func supported(pod *corev1.Pod) error {
	s := pod.Spec
	if len(s.Containers) != 1 || len(s.InitContainers) > 0 || s.SecurityContext == nil {
		return errors.New("the kubelet of the test runs one container, with a security context of the pod")
	}
	c := s.Containers[0]
	security, podSecurity := c.SecurityContext, s.SecurityContext
	hook := c.Lifecycle
	switch {
	case len(c.Command) > 0 || len(c.EnvFrom) > 0 || c.StartupProbe != nil || c.WorkingDir != "":
		return errors.New("the kubelet of the test knows no command, envFrom, startupProbe or workingDir")
	case hook != nil && (hook.PostStart != nil || hook.PreStop != nil && hook.PreStop.Sleep == nil):
		return errors.New("of hooks, the kubelet of the test knows a preStop that sleeps")
	case security == nil || security.RunAsUser != nil || security.ReadOnlyRootFilesystem == nil ||
		security.AllowPrivilegeEscalation == nil || security.Capabilities == nil:
		return errors.New("the kubelet of the test needs a container with the user of the pod, and with " +
			"readOnlyRootFilesystem, allowPrivilegeEscalation and capabilities")
	case podSecurity.RunAsUser == nil || podSecurity.RunAsGroup == nil || podSecurity.FSGroup == nil:
		return errors.New("the kubelet of the test wants a pod with a user, a group and a group of its volumes")
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
		if p != nil && p.HTTPGet == nil {
			return errors.New("of probes, the kubelet of the test knows httpGet")
		}
	}
	for _, m := range c.VolumeMounts {
		if m.SubPath != "" || m.SubPathExpr != "" {
			return errors.New("the kubelet of the test knows no subPath")
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom != nil || strings.Contains(e.Value, "$(") {
			return fmt.Errorf("%s: the kubelet of the test knows values only", e.Name)
		}
	}
	return nil
}

func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
}

// environment returns the variables of the spec and, unless the spec disables them, the variables that Kubernetes adds
// for each Service of the namespace.
func (w *podWorker) environment() ([]string, error) {
	var all []string
	if links := w.pod.Spec.EnableServiceLinks; links == nil || *links {
		services, err := w.k.client.CoreV1().Services(w.pod.Namespace).List(w.ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		for _, s := range services.Items {
			name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
			all = append(all, name+"_SERVICE_HOST="+s.Spec.ClusterIP, name+"_PORT=tcp://"+s.Spec.ClusterIP)
		}
	}
	for _, e := range w.spec().Env {
		all = append(all, e.Name+"="+e.Value)
	}
	return all, nil
}

func (w *podWorker) refreshSecrets(ctx context.Context) {
	for sleep(ctx, secretRefresh) {
		for _, v := range w.pod.Spec.Volumes {
			if v.Secret != nil {
				_ = w.k.writeSecret(ctx, w.pod, v.Secret, volumeDir(w.dir, v)) // on an error the old files stay
			}
		}
	}
}

// probe runs the readiness and liveness probes of a container, and kills it after a failed liveness probe.
func (w *podWorker) probe(ctx context.Context, c *container) {
	spec := w.spec()
	if spec.ReadinessProbe == nil {
		w.setReady(c, true)
	} else {
		go w.ask(ctx, spec.ReadinessProbe, func(ok bool) { w.setReady(c, ok) })
	}
	if spec.LivenessProbe != nil {
		w.ask(ctx, spec.LivenessProbe, func(ok bool) {
			select {
			case <-w.terminating: // probes end with the termination
			default:
				if !ok {
					c.signal(syscall.SIGTERM)
				}
			}
		})
	}
}

// ask probes at the probe's interval, and reports each result that reaches a threshold.
func (w *podWorker) ask(ctx context.Context, p *corev1.Probe, tell func(ok bool)) {
	client := &http.Client{
		Timeout:   time.Duration(p.TimeoutSeconds) * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true},
	}
	url := fmt.Sprintf("http://%s:%d%s", w.address, w.port(p.HTTPGet.Port), p.HTTPGet.Path)
	failures := int32(0)
	for more := sleep(ctx, max(time.Duration(p.InitialDelaySeconds)*time.Second,
		time.Second/10)); more; more = sleep(ctx, time.Duration(p.PeriodSeconds)*time.Second) {
		resp, err := client.Get(url)
		if err == nil {
			_ = resp.Body.Close()
		}
		if err == nil && resp.StatusCode < 400 {
			failures = 0
			tell(true)
		} else if failures++; failures >= p.FailureThreshold {
			tell(false)
		}
	}
}

func (w *podWorker) port(port intstr.IntOrString) int32 {
	for _, p := range w.spec().Ports {
		if p.Name == port.StrVal {
			return p.ContainerPort
		}
	}
	return port.IntVal
}

// setReady patches the readiness of a container if it changed.
func (w *podWorker) setReady(c *container, ready bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.container != c || ready == !w.readySince.IsZero() {
		return
	}
	w.readySince = metav1.Time{}
	if ready {
		w.readySince = metav1.Now()
	}
	w.patchLocked(corev1.PodRunning, running(c))
}

func running(c *container) corev1.ContainerState {
	return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Time{Time: c.started}}}
}

func waiting(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

// patch patches the status of the pod.
func (w *podWorker) patch(phase corev1.PodPhase, state corev1.ContainerState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.patchLocked(phase, state)
}

// patchLocked is patch for callers that hold mu, which stays locked until the API answers, to keep the order.
func (w *podWorker) patchLocked(phase corev1.PodPhase, state corev1.ContainerState) {
	ready, since := corev1.ConditionFalse, metav1.Now()
	if !w.readySince.IsZero() {
		ready, since = corev1.ConditionTrue, w.readySince
	}
	started := state.Running != nil
	status := corev1.PodStatus{
		Phase: phase, HostIP: "127.0.0.1", PodIP: w.address, PodIPs: []corev1.PodIP{{IP: w.address}},
		StartTime: &w.startTime,
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: w.startTime},
			{Type: corev1.PodInitialized, Status: corev1.ConditionTrue, LastTransitionTime: w.startTime},
			{Type: corev1.ContainersReady, Status: ready, LastTransitionTime: since},
			{Type: corev1.PodReady, Status: ready, LastTransitionTime: since},
		},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: w.spec().Name, Image: w.spec().Image, ImageID: w.spec().Image, RestartCount: w.restarts,
			Ready: ready == corev1.ConditionTrue, Started: &started, State: state,
		}},
	}
	w.k.patchStatus(w.ctx, w.pod, status)
}
