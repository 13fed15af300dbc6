package kube

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// endpointDelay is how long the balancer goes on with endpoints that have changed: as an ingress does, which has to hear
// of the change and to reload.
const endpointDelay = 3 * time.Second

// balancer passes requests on to the ready endpoints of a Service in turn, over connections that it keeps. It tries
// nothing twice: a request that an endpoint does not answer is answered 502.
type balancer struct {
	server *httptest.Server
	turn   atomic.Uint64

	mu        sync.Mutex
	endpoints []string // guarded by mu; host:port
}

func startBalancer(ctx context.Context, client kubernetes.Interface, namespace, service string) (*balancer, error) {
	b := new(balancer)
	slices, err := client.DiscoveryV1().EndpointSlices(namespace).Watch(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service,
	})
	if err != nil {
		return nil, err
	}
	go b.follow(ctx, slices)
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", b.next() },
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
	}
	b.server = httptest.NewServer(proxy)
	return b, nil
}

// next is the endpoint whose turn it is; without one it is nobody's address.
func (b *balancer) next() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.endpoints) == 0 {
		return "no-endpoint.invalid"
	}
	return b.endpoints[b.turn.Add(1)%uint64(len(b.endpoints))]
}

func (b *balancer) follow(ctx context.Context, w watch.Interface) {
	defer w.Stop()
	first := true
	for e := range w.ResultChan() {
		slice, ok := e.Object.(*discoveryv1.EndpointSlice)
		if !ok {
			continue
		}
		ready := readyOf(slice)
		if first && len(ready) > 0 {
			first = false
			b.set(ready)
			continue
		}
		time.AfterFunc(endpointDelay, func() {
			if ctx.Err() == nil {
				b.set(ready)
			}
		})
	}
}

func (b *balancer) set(endpoints []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endpoints = endpoints
}

func readyOf(s *discoveryv1.EndpointSlice) (all []string) {
	for _, e := range s.Endpoints {
		if e.Conditions.Ready != nil && *e.Conditions.Ready {
			all = append(all, e.Addresses[0]+":8080")
		}
	}
	slices.Sort(all)
	return all
}
