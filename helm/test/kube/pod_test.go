package kube

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// podWorker runs one pod, from its volumes to its end.
type podWorker struct {
	k       *kubelet
	pod     *corev1.Pod // as it was first seen
	address string
	dir     string

	ctx  context.Context // of all it does; ends when the pod is gone from the API
	stop context.CancelFunc

	once        sync.Once
	terminating chan struct{} // closed when the pod is to go
	grace       time.Duration // written before terminating is closed

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

// terminate begins the end of the pod.
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
		case <-w.terminating: // with nothing that runs
			w.k.remove(w.pod)
			return
		case <-time.After(retryInterval):
		}
	}
}

// runContainer follows a container to its end, and reports whether that is the end of the pod.
func (w *podWorker) runContainer(c *container) (over bool) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	w.setContainer(c)
	w.patch(corev1.PodRunning, running(c))
	go w.probe(ctx, c)
	go w.refreshSecrets(ctx)
	select {
	case <-c.done:
		w.setContainer(nil)
		return w.ended(c)
	case <-w.terminating:
		w.endInOrder(c)
		w.setContainer(nil)
		w.ended(c)
		w.k.remove(w.pod)
		return true
	case <-w.ctx.Done():
		c.signal(syscall.SIGKILL)
		<-c.done
		return true
	}
}

// endInOrder ends a container as the kubelet does: its hook, SIGTERM, and SIGKILL when the grace is over.
func (w *podWorker) endInOrder(c *container) {
	deadline := time.NewTimer(w.grace)
	defer deadline.Stop()
	if hook := w.spec().Lifecycle; hook != nil && hook.PreStop != nil {
		select {
		case <-time.After(time.Duration(hook.PreStop.Sleep.Seconds) * time.Second):
		case <-c.done:
		case <-deadline.C:
		case <-w.ctx.Done():
			deadline.Reset(0)
		}
	}
	c.signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-deadline.C:
		c.signal(syscall.SIGKILL)
	case <-w.ctx.Done():
		c.signal(syscall.SIGKILL)
	}
	<-c.done
}

// ended says how a container ended, and reports whether the pod is over, too.
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
		w.patch(corev1.PodRunning, waiting("CrashLoopBackOff", fmt.Sprintf("the container ended with exit code %d", c.exitCode())))
		return false
	}
}

func (w *podWorker) setContainer(c *container) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.container, w.readySince = c, metav1.Time{}
}

func (w *podWorker) spec() *corev1.Container { return &w.pod.Spec.Containers[0] }

func (w *podWorker) startContainer() (*container, error) {
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
		UID: int(*podSecurity.RunAsUser), GID: int(*podSecurity.RunAsGroup), Groups: []int{int(*podSecurity.FSGroup)},
		Args: append([]string{"/postbridge"}, w.spec().Args...), Env: environment,
		Mounts: []mount{{From: program, To: "/postbridge", ReadOnly: true}, {From: "/etc/hosts", To: "/etc/hosts", ReadOnly: true}},
	}
	for _, m := range w.spec().VolumeMounts {
		spec.Mounts = append(spec.Mounts, mount{From: volumes[m.Name], To: m.MountPath, ReadOnly: m.ReadOnly})
	}
	log, err := openLog(w.k.logFile(w.pod.Namespace, w.pod.Name))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	return startContainer(spec, log)
}

func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
}

// environment is that of the spec, and, if the spec does not say otherwise, what Kubernetes adds for each Service of the
// namespace.
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
		if e.ValueFrom != nil {
			return nil, fmt.Errorf("%s: the kubelet of the test does not know valueFrom", e.Name)
		}
		all = append(all, e.Name+"="+e.Value)
	}
	return all, nil
}

func (w *podWorker) refreshSecrets(ctx context.Context) {
	for sleep(ctx, secretRefresh) {
		_, _ = w.k.mountVolumes(ctx, w.pod, w.dir) // what cannot be read stays as it is
	}
}

// probe asks a container whether it is ready and whether it lives, and kills one that does not.
func (w *podWorker) probe(ctx context.Context, c *container) {
	spec := w.spec()
	if spec.ReadinessProbe == nil {
		w.setReady(c, true)
	} else {
		go w.ask(ctx, spec.ReadinessProbe, func(ok bool) { w.setReady(c, ok) })
	}
	if spec.LivenessProbe != nil {
		w.ask(ctx, spec.LivenessProbe, func(ok bool) {
			if !ok {
				c.signal(syscall.SIGKILL)
			}
		})
	}
}

// ask asks at the probe's intervals, and tells each answer that counts.
func (w *podWorker) ask(ctx context.Context, p *corev1.Probe, tell func(ok bool)) {
	client := &http.Client{
		Timeout:   time.Duration(p.TimeoutSeconds) * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true},
	}
	url := fmt.Sprintf("http://%s:%d%s", w.address, w.port(p.HTTPGet.Port), p.HTTPGet.Path)
	failures := int32(0)
	for sleep(ctx, max(time.Duration(p.InitialDelaySeconds)*time.Second, time.Second/10)) {
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
		if !sleep(ctx, time.Duration(p.PeriodSeconds)*time.Second) {
			return
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

// setReady says whether a container is ready, if that is news.
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

// patch says in the API how the pod is.
func (w *podWorker) patch(phase corev1.PodPhase, state corev1.ContainerState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.patchLocked(phase, state)
}

// patchLocked is called with mu held, which it keeps until the API knows: what is said later is later.
func (w *podWorker) patchLocked(phase corev1.PodPhase, state corev1.ContainerState) {
	ready, since := corev1.ConditionFalse, metav1.Now()
	if !w.readySince.IsZero() {
		ready, since = corev1.ConditionTrue, w.readySince
	}
	started := state.Running != nil
	status := corev1.PodStatus{
		Phase: phase, HostIP: "127.0.0.1", PodIP: w.address, PodIPs: []corev1.PodIP{{IP: w.address}}, StartTime: &w.startTime,
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

func isGone(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }
