//go:build linux

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coordinationv1 "k8s.io/client-go/applyconfigurations/coordination/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const (
	leaseRenewal  = 10 * time.Second
	secretRefresh = 500 * time.Millisecond // about a minute on a real node
	retryInterval = 250 * time.Millisecond // between attempts to start a container
)

// kubelet runs the pods of one node as processes. It implements what the chart relies on: volumes, environment, users,
// probes, preStop, grace periods, restarts, status. It has no resource limits and no images: a program is one file.
type kubelet struct {
	client    kubernetes.Interface
	node      string
	image     func(name string) string // path of the program in the image
	dir       string
	addresses *addresses
	server    *httptest.Server // requests of the API server

	running sync.WaitGroup // of pods

	mu   sync.Mutex
	pods map[types.UID]*podWorker // guarded by mu; includes ended pods that the API still has
}

// addresses allocates pod addresses.
type addresses struct {
	mu   sync.Mutex
	next int // guarded by mu
}

func (a *addresses) take() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next++
	return fmt.Sprintf("10.244.%d.%d", 1+a.next/250, 1+a.next%250)
}

func (k *kubelet) start(ctx context.Context, t *testing.T) error {
	k.pods = make(map[types.UID]*podWorker)
	k.server = httptest.NewTLSServer(k.handler())
	t.Cleanup(k.server.Close)
	if err := k.register(ctx); err != nil {
		return err
	}
	go k.renew(ctx)
	f := informers.NewSharedInformerFactoryWithOptions(k.client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = "spec.nodeName=" + k.node
		}))
	if _, err := f.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { k.update(ctx, o.(*corev1.Pod)) },
		UpdateFunc: func(_, o any) { k.update(ctx, o.(*corev1.Pod)) },
		DeleteFunc: func(o any) {
			if last, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = last.Obj
			}
			k.forget(o.(*corev1.Pod).UID)
		},
	}); err != nil {
		return err
	}
	f.Start(ctx.Done())
	return nil
}

// register creates the Node.
func (k *kubelet) register(ctx context.Context) error {
	u, err := url.Parse(k.server.URL)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return err
	}
	capacity := corev1.ResourceList{"cpu": resource.MustParse("8"), "memory": resource.MustParse("32Gi"),
		"pods": resource.MustParse("110")}
	node, err := k.client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: k.node,
			Labels: map[string]string{"kubernetes.io/hostname": k.node, "topology.kubernetes.io/zone": "zone-" +
				k.node}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	now := metav1.Now()
	node.Status = corev1.NodeStatus{
		Capacity: capacity, Allocatable: capacity,
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
			LastHeartbeatTime: now, LastTransitionTime: now}},
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: u.Hostname()}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(port)}},
	}
	_, err = k.client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

// renew renews the Lease of the node.
func (k *kubelet) renew(ctx context.Context) {
	for {
		lease := coordinationv1.Lease(k.node, corev1.NamespaceNodeLease).WithSpec(coordinationv1.LeaseSpec().
			WithHolderIdentity(k.node).WithLeaseDurationSeconds(40).WithRenewTime(metav1.NowMicro()))
		_, err := k.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Apply(ctx, lease,
			metav1.ApplyOptions{FieldManager: k.node, Force: true})
		if err != nil && ctx.Err() == nil {
			log.Printf("node %s: its lease is not renewed: %v", k.node, err)
		}
		if !sleep(ctx, leaseRenewal) {
			return
		}
	}
}

func (k *kubelet) update(ctx context.Context, pod *corev1.Pod) {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		if pod.DeletionTimestamp != nil {
			k.forget(pod.UID)
			go k.remove(ctx, pod)
		}
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.pods[pod.UID]
	if w == nil {
		w = newPodWorker(ctx, k, pod)
		k.pods[pod.UID] = w
		k.running.Go(w.run)
	}
	if pod.DeletionTimestamp != nil {
		w.terminate(time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second)
	}
}

// forget stops a pod that the API has deleted.
func (k *kubelet) forget(uid types.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if w := k.pods[uid]; w != nil {
		w.stop()
		delete(k.pods, uid)
	}
}

// remove deletes a pod whose container has ended from the API.
func (k *kubelet) remove(ctx context.Context, pod *corev1.Pod) {
	none := int64(0)
	k.untilDone(ctx, pod, func() error {
		return k.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &none, Preconditions: &metav1.Preconditions{UID: &pod.UID},
		})
	})
}

// untilDone retries a request about a pod until it succeeds or the API has no such pod.
func (k *kubelet) untilDone(ctx context.Context, pod *corev1.Pod, try func() error) {
	for logged := false; ; logged = true {
		err := try()
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return
		}
		if !logged && ctx.Err() == nil {
			log.Printf("node %s: pod %s/%s: %v", k.node, pod.Namespace, pod.Name, err)
		}
		if !sleep(ctx, retryInterval) {
			return
		}
	}
}

// containerOf returns the running container of a pod, or nil.
func (k *kubelet) containerOf(namespace, name string) *container {
	for _, w := range k.workers(namespace, name) {
		if c := w.running(); c != nil {
			return c
		}
	}
	return nil
}

// workers returns the workers of a pod name: more than one while a force-deleted pod still ends.
func (k *kubelet) workers(namespace, name string) (all []*podWorker) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, w := range k.pods {
		if w.pod.Namespace == namespace && w.pod.Name == name {
			all = append(all, w)
		}
	}
	return all
}

// handler serves the kubelet API for kubectl logs, exec and port-forward.
func (k *kubelet) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		for _, of := range k.workers(r.PathValue("namespace"), r.PathValue("pod")) {
			text, err := os.ReadFile(of.logFile())
			if err != nil {
				http.Error(w, err.Error(), http.StatusNotFound)
				return
			}
			_, _ = w.Write(text)
		}
	})
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		c := k.containerOf(r.PathValue("namespace"), r.PathValue("pod"))
		options, err := remotecommand.NewOptions(r)
		if c == nil || err != nil {
			http.Error(w, "no such container runs", http.StatusNotFound)
			return
		}
		remotecommand.ServeExec(w, r, executor{c}, "", "", "", r.URL.Query()["command"], options, time.Hour,
			time.Minute,
			remotecommand.SupportedStreamingProtocols)
	})
	mux.HandleFunc("/portForward/{namespace}/{pod}", func(w http.ResponseWriter, r *http.Request) {
		pods := k.workers(r.PathValue("namespace"), r.PathValue("pod"))
		options, err := portforward.NewV4Options(r)
		if len(pods) == 0 || err != nil {
			http.Error(w, "no such pod", http.StatusNotFound)
			return
		}
		portforward.ServePortForward(w, r, forwarder(pods[0].address), "", "", options, time.Hour, time.Minute,
			portforward.SupportedProtocols)
	})
	return mux
}

// forwarder forwards to the ports of the pod at this address.
type forwarder string

func (f forwarder) PortForward(ctx context.Context, _, _ string, port int32, from io.ReadWriteCloser) error {
	to, err := new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", f, port))
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(to, from)
		_ = to.Close()
	}()
	if _, err = io.Copy(from, to); errors.Is(err, net.ErrClosed) {
		return nil // the client closed first; kubectl would report an error and end
	}
	return err
}

// executor runs commands in a container.
type executor struct{ c *container }

func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, args []string, in io.Reader, out,
	stderr io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	cmd := e.c.exec(ctx, args)
	cmd.Stdin = in
	if out != nil {
		cmd.Stdout = out
	}
	if stderr != nil {
		cmd.Stderr = stderr
	}
	return cmd.Run()
}

// patchStatus patches the status of a pod.
func (k *kubelet) patchStatus(ctx context.Context, pod *corev1.Pod, status corev1.PodStatus) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		panic(err)
	}
	// A strategic merge keeps the conditions that others have set.
	k.untilDone(ctx, pod, func() error {
		_, err := k.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch,
			metav1.PatchOptions{}, "status")
		return err
	})
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
