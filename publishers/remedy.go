package publishers

import "fmt"

// WithRemedy appends the remedy to the error of a condition, as CheckResult.String does to the result of a check: what
// doctor prints for a fault, /status, the page and the log have, too. It returns err if there is none, or no remedy.
func WithRemedy(err error, do string) error {
	if err == nil || do == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, do)
}
