package guest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"varve/integration/harness"

	"varve/integration/patience"
)

// qmpSocket is where QEMU listens for QMP, the protocol of its monitor.
const qmpSocket = "qmp"

// State is the virtual machine's state as query-status gives it: "running", or
// "io-error" where QEMU paused it because its disk could not be written.
func (g *Guest) State() string {
	g.t.Helper()
	var status struct {
		Status string `json:"status"`
	}
	g.qmp("query-status", &status)
	return status.Status
}

// WaitState waits until the machine is in a state.
func (g *Guest) WaitState(state string) {
	g.t.Helper()
	harness.Eventually(g.t, patience.Hang, func() error {
		if now := g.State(); now != state {
			return fmt.Errorf("the guest is %q, want %q\n%s", now, state, g.logs())
		}
		return nil
	})
}

// Continue lets a paused machine go on; what had failed is tried again.
func (g *Guest) Continue() {
	g.t.Helper()
	g.qmp("cont", nil)
}

// qmp executes one command of QEMU's monitor, on a connection of its own.
func (g *Guest) qmp(command string, into any) {
	g.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(g.dir, qmpSocket))
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.logs())
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(patience.Hang)); err != nil {
		g.t.Fatal(err)
	}
	answers := bufio.NewScanner(conn)
	// The greeting comes first; then each command is answered by a line with
	// "return" or "error". Events come in between.
	for _, execute := range []string{"qmp_capabilities", command} {
		if _, err := fmt.Fprintf(conn, "{\"execute\":%q}\n", execute); err != nil {
			g.t.Fatalf("QMP %s: %v", execute, err)
		}
		for {
			if !answers.Scan() {
				g.t.Fatalf("QMP %s: no answer: %v\n%s", execute, answers.Err(), g.logs())
			}
			var answer struct {
				Return json.RawMessage `json:"return"`
				Error  json.RawMessage `json:"error"`
			}
			if err := json.Unmarshal(answers.Bytes(), &answer); err != nil {
				g.t.Fatalf("QMP %s: %v: %s", execute, err, answers.Text())
			}
			if answer.Error != nil {
				g.t.Fatalf("QMP %s: %s", execute, answer.Error)
			}
			if answer.Return == nil {
				continue
			}
			if execute == command && into != nil {
				if err := json.Unmarshal(answer.Return, into); err != nil {
					g.t.Fatalf("QMP %s: %v: %s", execute, err, answer.Return)
				}
			}
			break
		}
	}
}
