// Package patience says how long tests wait for what must happen. Nobody knows how slow
// a machine is, and what else it does: no test asserts a time, and only what never
// happens takes as long as Hang.
package patience

import (
	"os"
	"time"
)

// Variable shortens Hang: the environment variable's value is a duration. The broken
// rules (integration/rules) do that, since what they break often never happens again.
const Variable = "VARVE_PATIENCE"

// Hang is how long a test waits for what must happen. It is less than what
// integration/testrun lets a test binary be silent for, so that the test can say for
// what it waited.
var Hang = hang(os.Getenv(Variable))

const usual = 10 * time.Minute

func hang(value string) time.Duration {
	if d, err := time.ParseDuration(value); err == nil && d > 0 {
		return d
	}
	return usual
}
