// Package render looks at what the chart renders, and has a real API server take it. It runs nothing of it: package
// kube does.
package render
