// Package publishers holds the code that the publishers of all buses share: checkpoints, conditions and the results of
// checks.
package publishers
