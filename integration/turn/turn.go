// Package turn says which part of what could be tried has its turn. Tests that take
// one in many of the calls, places or seeds that there are begin at another one in
// each turn, so that runs of make test on different days try all of them.
package turn

import (
	"os"
	"strconv"
)

// Variable is the environment variable that has the turn, a number; without it each
// test begins where it always does. integration/testrun sets and prints it.
const Variable = "VARVE_TURN"

// Number is the turn's number, 0 without one.
func Number() uint64 {
	n, err := strconv.ParseUint(os.Getenv(Variable), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Of gives first moved on by the turn, within 0 to n-1; n must be more than 0.
func Of(first, n int) int { return int((uint64(first) + Number()) % uint64(n)) }

// Window gives the first of count numbers that have their turn among 0 to all-1. The
// windows of successive turns lie one behind the other; count divides all.
func Window(count, all int) int { return Of(0, all/count) * count }
