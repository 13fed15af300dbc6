//go:build linux

// Package kube tests the chart by running it. A real control plane runs on loopback; a small kubelet runs the pods of
// each node as local processes, with the environment, mounts, probes, hooks and grace periods of their specs; a
// balancer follows the readiness of endpoints, as a Service and an ingress do. Everything runs in new network, mount
// and PID namespaces, so that nothing is reachable from outside and nothing outlives the test.
//
//	              sandbox: network 10.244.0.0/16 on a bridge
//	┌────────────────────────────────────────────────────────────────────┐
//	│ etcd ◄─ API server ◄─ controllers, scheduler     helm, kubectl     │
//	│              ▲                                   (stories/*.txtar) │
//	│   ┌──────────┼───────────┐                                         │
//	│ kubelet   storage    balancer ◄── postbridge send                  │
//	│   │                      │                                         │
//	│   ▼ a process in         ▼                                         │
//	│ pod: postbridge serve ──► NATS, Kafka on 10.244.0.1 …              │
//	└────────────────────────────────────────────────────────────────────┘
package kube
