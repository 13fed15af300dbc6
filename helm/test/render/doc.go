// Package render checks the rendered chart, also with a real API server. It runs nothing; package kube does.
package render
