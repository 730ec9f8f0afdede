package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// qmp executes one command of qemu-storage-daemon's monitor and gives the time
// from sending it to its answer.
func qmp(socket, command string, arguments any) (time.Duration, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return 0, err
	}
	answers := bufio.NewScanner(conn) // the greeting comes first, events in between
	var took time.Duration
	for _, c := range []map[string]any{{"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}} {
		line, err := json.Marshal(c)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		if _, err := conn.Write(append(line, '\n')); err != nil {
			return 0, err
		}
		for answered := false; !answered; {
			if !answers.Scan() {
				return 0, fmt.Errorf("%s: no answer (%v)", command, answers.Err())
			}
			var answer struct {
				Return json.RawMessage
				Error  *struct{ Desc string }
			}
			if err := json.Unmarshal(answers.Bytes(), &answer); err != nil {
				return 0, err
			}
			if answer.Error != nil {
				return 0, fmt.Errorf("%s: %s", command, answer.Error.Desc)
			}
			answered = answer.Return != nil
		}
		took = time.Since(start)
	}
	return took, nil
}
