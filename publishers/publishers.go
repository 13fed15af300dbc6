// Package publishers holds the code that the publishers of all buses share: checkpoints and conditions.
package publishers
