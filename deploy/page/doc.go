// Package page tests the page at the admin address in Chromium, against a real postbridge. It is a separate module,
// so that its dependencies are not those of postbridge.
//
// Look at the page after a change of it: "make page-test SHOTS=dir" saves pictures on a desktop and on a phone, in
// light and in dark mode, with the bus up, down and up again. "go test -run TestPicture -picture" writes page.png anew,
// the picture of the documents.
package page
