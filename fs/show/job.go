package show

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"varve/chain"
)

// JobLine says in words how far a job is.
func jobLine(st chain.Status, j chain.JobStatus) string {
	line := fmt.Sprintf("%s: %s of %s, %s", j.ID, j.Kind, titleOf(st, j.Layer), j.State)
	if j.TotalBytes > 0 {
		done := min(j.DoneBytes, j.TotalBytes)
		line += fmt.Sprintf(", %d %% (%s of %s)", jobPercent(j), Size(done), Size(j.TotalBytes))
	}
	if j.Rate > 0 {
		line += ", " + Size(j.Rate) + "/s"
	}
	if j.RateLimit > 0 && j.State == chain.JobRunning {
		line += " (limit " + Size(j.RateLimit) + "/s)"
	}
	if left := timeLeft(j); left != "" {
		line += ", " + left
	}
	if j.Error != "" {
		line += ": " + OneLine(j.Error)
	}
	return line
}

// wrapAtCommas breaks a line where it would be wider than that.
func wrapAtCommas(line string, width int, lineBreak string) string {
	var text strings.Builder
	at := 0
	for i, part := range strings.SplitAfter(line, ", ") {
		n := utf8.RuneCountInString(strings.TrimRight(part, " "))
		if i > 0 && at+n > width {
			wrapped := strings.TrimRight(text.String(), " ") + lineBreak
			text.Reset()
			text.WriteString(wrapped)
			at = 0
		}
		text.WriteString(part)
		at += utf8.RuneCountInString(part)
	}
	return text.String()
}

// jobPercent is how much of a job's bytes is dealt with.
func jobPercent(j chain.JobStatus) int {
	// In parts that cannot overflow, for disks of any size.
	return int(float64(min(j.DoneBytes, j.TotalBytes)) / float64(j.TotalBytes) * 100)
}

// timeLeft is how long a running job still needs, in words: "2 min 10 s left"; "" when
// that is not known.
func timeLeft(j chain.JobStatus) string {
	if j.State != chain.JobRunning || j.SecondsLeft == nil || *j.SecondsLeft < 0 {
		return ""
	}
	return humanTime(*j.SecondsLeft) + " left"
}

// humanTime is a number of seconds in two units at most, the smaller one rounded so
// that it does not jump about.
func humanTime(seconds int64) string {
	const minute, hour, day = 60, 60 * 60, 24 * 60 * 60
	switch {
	case seconds < minute:
		return fmt.Sprintf("%d s", seconds)
	case seconds < 10*minute:
		seconds = (seconds + 5) / 10 * 10
		return join(seconds/minute, "min", seconds%minute, "s")
	case seconds < hour-minute/2:
		return fmt.Sprintf("%d min", (seconds+minute/2)/minute)
	case seconds < day-5*minute:
		seconds = (seconds + 5*minute) / (10 * minute) * (10 * minute)
		return join(seconds/hour, "h", seconds%hour/minute, "min")
	}
	seconds = (seconds + hour/2) / hour * hour
	return join(seconds/day, "d", seconds%day/hour, "h")
}

func join(big int64, bigUnit string, small int64, smallUnit string) string {
	if small == 0 {
		return fmt.Sprintf("%d %s", big, bigUnit)
	}
	return fmt.Sprintf("%d %s %d %s", big, bigUnit, small, smallUnit)
}
