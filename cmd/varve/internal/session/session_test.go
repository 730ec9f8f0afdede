package session

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"varve/integration/patience"
)

func TestLoginGroup(t *testing.T) {
	for _, c := range []struct {
		text string
		want bool
	}{
		{"0::/user.slice/user-1000.slice/session-3.scope\n", true},
		{"0::/user.slice/user-1000.slice/user@1000.service/app.slice/gnome-terminal.scope\n", true},
		{"5:devices:/user.slice\n1:name=systemd:/user.slice/user-0.slice/session-c1.scope\n0::/\n", true},
		{"0::/system.slice/varve@vm1.service\n", false},
		{"0::/system.slice/varve-77.scope\n", false},
		{"5:devices:/user.slice/x\n0::/\n", false},
		{"0::/\n", false},
		{"", false},
		{"rubbish", false},
	} {
		if got := loginGroup(c.text); got != c.want {
			t.Errorf("loginGroup(%q) = %v", c.text, got)
		}
	}
}

// scopeRequest is what systemd is asked for.
type scopeRequest struct {
	name, mode string
	properties map[string]godbus.Variant
}

// systemd answers as systemd's manager does.
type systemd struct {
	conn   *godbus.Conn
	result string
	asked  chan scopeRequest
}

type property struct {
	Name  string
	Value godbus.Variant
}

type auxiliary struct {
	Name       string
	Properties []property
}

func (s *systemd) StartTransientUnit(name, mode string, properties []property, _ []auxiliary) (godbus.ObjectPath, *godbus.Error) {
	r := scopeRequest{name, mode, map[string]godbus.Variant{}}
	for _, p := range properties {
		r.properties[p.Name] = p.Value
	}
	s.asked <- r
	if s.result == "refused" {
		return "", godbus.MakeFailedError(fmt.Errorf("access denied"))
	}
	const job = godbus.ObjectPath("/org/freedesktop/systemd1/job/7")
	time.AfterFunc(20*time.Millisecond, func() {
		_ = s.conn.Emit("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager.JobRemoved", uint32(7), job, name, s.result)
	})
	return job, nil
}

// bus starts a bus of its own with that systemd on it, and lets this process take
// it for the one of the system and of the user.
func bus(t *testing.T, result string) *systemd {
	t.Helper()
	daemon := exec.Command("dbus-daemon", "--session", "--nofork", "--print-address", "--address=unix:dir="+t.TempDir())
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address = strings.TrimSpace(address)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", address)

	conn, err := connect(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s := &systemd{conn: conn, result: result, asked: make(chan scopeRequest, 1)}
	if err := conn.Export(s, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName("org.freedesktop.systemd1", godbus.NameFlagDoNotQueue); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	return s
}

func TestLeave(t *testing.T) {
	s := bus(t, "done")
	ctx, cancel := context.WithTimeout(context.Background(), patience.Hang)
	defer cancel()
	unit, err := Leave(ctx, "varve mount /mnt/vm1")
	if err != nil {
		t.Fatal(err)
	}
	r := <-s.asked
	if want := fmt.Sprintf("varve-%d.scope", os.Getpid()); unit != want || r.name != want || r.mode != "fail" {
		t.Errorf("unit %s, asked for %s (%s), want %s", unit, r.name, r.mode, want)
	}
	pids, _ := r.properties["PIDs"].Value().([]uint32)
	if !slices.Equal(pids, []uint32{uint32(os.Getpid())}) {
		t.Errorf("it moves the processes %v", r.properties["PIDs"])
	}
	slice := "app.slice"
	if os.Geteuid() == 0 {
		slice = "system.slice"
		before, _ := r.properties["Before"].Value().([]string)
		if !slices.Contains(before, "libvirt-guests.service") {
			t.Errorf("it is stopped before the VMs: %v", r.properties["Before"])
		}
	}
	if got, _ := r.properties["Slice"].Value().(string); got != slice {
		t.Errorf("slice %q, want %q", got, slice)
	}
}

func TestLeaveFails(t *testing.T) {
	for result, words := range map[string]string{
		"refused": "access denied",
		"failed":  "systemd did not make the scope",
	} {
		t.Run(result, func(t *testing.T) {
			bus(t, result)
			ctx, cancel := context.WithTimeout(context.Background(), patience.Hang)
			defer cancel()
			if _, err := Leave(ctx, "x"); err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("Leave: %v", err)
			}
		})
	}
	t.Run("no bus", func(t *testing.T) {
		t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
		t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
		if _, err := Leave(context.Background(), "x"); err == nil {
			t.Error("there is no bus, and it was left")
		}
	})
}
