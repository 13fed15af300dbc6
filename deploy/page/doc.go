// Package page tests the page at the admin address in Chromium, against a real postbridge. It is a separate module,
// so that its dependencies are not those of postbridge.
package page
