//go:build linux

package kube

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// endpointDelay is how long the balancer uses endpoints after they changed, like an ingress that has to watch the
// change and reload.
const endpointDelay = 3 * time.Second

// balancer forwards requests to the ready endpoints of a Service in turn, over keep-alive connections. It does not
// retry: a request that an endpoint does not answer is answered 502.
type balancer struct {
	server *httptest.Server
	turn   atomic.Uint64

	mu     sync.Mutex
	slices map[string]*discoveryv1.EndpointSlice // guarded by mu
}

func startBalancer(ctx context.Context, client kubernetes.Interface, namespace, service string) (*balancer, error) {
	b := &balancer{slices: make(map[string]*discoveryv1.EndpointSlice)}
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.LabelSelector = discoveryv1.LabelServiceName + "=" + service
		}))
	later := func(change func()) {
		time.AfterFunc(endpointDelay, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			change()
		})
	}
	put := func(o any) {
		s := o.(*discoveryv1.EndpointSlice)
		later(func() {
			if last := b.slices[s.Name]; last == nil || last.Generation < s.Generation {
				b.slices[s.Name] = s
			}
		})
	}
	if _, err := f.Discovery().V1().EndpointSlices().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: put, UpdateFunc: func(_, o any) { put(o) },
		DeleteFunc: func(o any) {
			if s, ok := o.(*discoveryv1.EndpointSlice); ok {
				later(func() { delete(b.slices, s.Name) })
			}
		},
	}); err != nil {
		return nil, err
	}
	f.Start(ctx.Done())
	b.server = httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", b.next() },
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
	})
	return b, nil
}

// noEndpoint is an address without a listener.
const noEndpoint = "no-endpoint.invalid"

// next returns the next endpoint, round robin.
func (b *balancer) next() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ready []string
	for _, s := range b.slices {
		ready = append(ready, readyOf(s)...)
	}
	if len(ready) == 0 {
		return noEndpoint
	}
	slices.Sort(ready)
	return ready[b.turn.Add(1)%uint64(len(ready))]
}

func readyOf(s *discoveryv1.EndpointSlice) (all []string) {
	if len(s.Ports) == 0 || s.Ports[0].Port == nil {
		return nil
	}
	for _, e := range s.Endpoints {
		if e.Conditions.Ready != nil && *e.Conditions.Ready {
			all = append(all, fmt.Sprintf("%s:%d", e.Addresses[0], *s.Ports[0].Port))
		}
	}
	return all
}
