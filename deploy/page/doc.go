// Package page tests the page at the admin address in a real browser, Chromium, before a real postbridge. It is a module of
// its own, so that what it needs is no dependency of postbridge.
package page
