// Package publishers holds what the publishers of all buses share.
package publishers
